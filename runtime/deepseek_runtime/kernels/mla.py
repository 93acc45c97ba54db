"""Multi-head latent attention over cached rows [latent C | rotated key R], in its two equivalent forms.

Expanded: keys and values of every head are computed from the latents; cheapest when many queries share them.
Absorbed: queries and outputs pass through W_UK and W_UV instead, and one latent head is attended; reads least.
Scores are scaled by the width of the expanded head in both, softmax is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEY_CHUNK = 1024
"""Context positions expanded at a time, which bounds memory for long prefixes."""


def absorbed_attention(q_BQHW: Tensor, rows_BSW: Tensor, visible_BQS: Tensor, latent: int, scale: float) -> Tensor:
    """Attend the cached rows by queries [absorbed C | rotated R]; the latent mix [B, Q, H, C] of each head.

    `visible_BQS` says which rows a query may see, at least one each; `latent` is C.
    """
    batch, queries, heads, _ = q_BQHW.shape
    scores = (q_BQHW.flatten(1, 2) @ rows_BSW.mT).float().view(batch, queries, heads, -1) * scale
    scores = scores.masked_fill_(~visible_BQS.unsqueeze(2), -torch.inf)
    probabilities = scores.softmax(dim=-1).to(rows_BSW.dtype).flatten(1, 2)
    mixed: Tensor = probabilities @ rows_BSW[..., :latent]
    return mixed.view(batch, queries, heads, latent)


def expanded_attention(q_THQ: Tensor, rows_SW: Tensor, w_uk_HNC: Tensor, w_uv_HVC: Tensor, scale: float) -> Tensor:
    """Attend one sequence by its last T tokens, queries [nope N | rotated R]; the output [T, H, V].

    Query t sees the rows up to its own, S - T + t: the causal mask is relative to what was cached before.
    """
    tokens, context, latent = q_THQ.shape[0], rows_SW.shape[0], w_uk_HNC.shape[2]
    q_HTQ = q_THQ.transpose(0, 1)
    last_T1 = torch.arange(context - tokens, context, device=q_THQ.device).unsqueeze(1)
    merged = _Softmax(q_HTQ, w_uv_HVC.shape[1])
    for start in range(0, context, KEY_CHUNK):
        chunk_SW = rows_SW[start : start + KEY_CHUNK]
        latent_SC, rotated_SR = chunk_SW[:, :latent], chunk_SW[:, latent:]
        keys_HSN, values_HSV = latent_SC @ w_uk_HNC.mT, latent_SC @ w_uv_HVC.mT
        keys = torch.cat((keys_HSN, rotated_SR.expand(len(keys_HSN), -1, -1)), dim=-1)
        scores = (q_HTQ @ keys.mT).float() * scale
        position_S = torch.arange(start, start + len(chunk_SW), device=q_THQ.device)
        merged.add(scores.masked_fill_(position_S > last_T1, -torch.inf), values_HSV)
    return merged.result().transpose(0, 1)


class _Softmax:
    """A softmax-weighted sum over keys that come in chunks, exact at any number of chunks. The first chunk holds a key
    that every query sees."""

    def __init__(self, q_HTQ: Tensor, width: int) -> None:
        heads, tokens, _ = q_HTQ.shape
        self._peak = torch.full((heads, tokens, 1), -torch.inf, device=q_HTQ.device)
        self._total = torch.zeros_like(self._peak)
        self._sum = torch.zeros(heads, tokens, width, device=q_HTQ.device)
        self._dtype = q_HTQ.dtype

    def add(self, scores_HTS: Tensor, values_HSV: Tensor) -> None:
        peak = torch.maximum(self._peak, scores_HTS.amax(dim=-1, keepdim=True))
        weights = (scores_HTS - peak).exp_()
        rescale = (self._peak - peak).exp_()
        self._total = self._total * rescale + weights.sum(dim=-1, keepdim=True)
        self._sum = self._sum * rescale + (weights.to(values_HSV.dtype) @ values_HSV).float()
        self._peak = peak

    def result(self) -> Tensor:
        return (self._sum / self._total).to(self._dtype)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the interleaved pairs (2i, 2i + 1) of x [..., R] by rotations that broadcast to [..., R / 2]."""
    even, odd = x[..., ::2].float(), x[..., 1::2].float()
    # Not `view_as_complex`: pairs behind an odd number of other channels do not lie as complex numbers may.
    return torch.view_as_real(torch.complex(even, odd) * rotations).flatten(-2).to(x.dtype)
