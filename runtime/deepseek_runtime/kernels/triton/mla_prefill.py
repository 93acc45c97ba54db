"""Expanded attention of one sequence's new tokens: keys and values of every head, computed from the latents in chunks.

The softmax's state (peak, sum, mix) stays in memory between chunks, so that a long prefix costs one chunk's keys and
values at a time and the result is exact at any number of chunks.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.kernels.interface import Expansion
from deepseek_runtime.kernels.triton.hardware import Hardware, upcasts
from deepseek_runtime.kernels.triton.language import cdiv, kernel, next_power, tl
from deepseek_runtime.kernels.triton.softmax import add_keys

CHUNK = 8192
"""Context positions expanded at a time: 0.5 GB of keys and values for V3's 128 heads in bf16."""
QUERIES, KEYS = 64, 64
"""Query tokens of a program, and keys that it reads at a time."""


@dataclass(frozen=True, slots=True)
class _State:
    """A softmax over the keys seen so far, float32: mix [T, H, V] not divided yet, peak and sum [T, H]."""

    mixed: Tensor
    peak: Tensor
    total: Tensor


def expanded_attention(
    q_nope_THN: Tensor,
    q_rope_THR: Tensor,
    rows_SW: Tensor,
    expansion: Expansion,
    hardware: Hardware,
) -> Tensor:
    """Output [T, H, V]; the T tokens are the last of the sequence, whose cached rows are `rows_SW`."""
    tokens, heads, _ = q_nope_THN.shape
    latent, width = expansion.w_uk_HNC.shape[2], expansion.w_uv_HVC.shape[1]
    device = q_nope_THN.device
    state = _State(
        torch.zeros(tokens, heads, width, device=device),
        torch.full((tokens, heads), -torch.inf, device=device),
        torch.zeros(tokens, heads, device=device),
    )
    q_nope_THN, q_rope_THR = q_nope_THN.contiguous(), q_rope_THR.contiguous()
    for start in range(0, len(rows_SW), CHUNK):
        rows = rows_SW[start : start + CHUNK]
        keys_HSN = rows[:, :latent] @ expansion.w_uk_HNC.mT
        values_HSV = rows[:, :latent] @ expansion.w_uv_HVC.mT
        # Query t sees the keys of this chunk up to `visible + t`.
        visible = len(rows_SW) - tokens - start
        _launch(
            (q_nope_THN, q_rope_THR),
            (keys_HSN, rows[:, latent:], values_HSV),
            state,
            (expansion.scale, visible),
            hardware,
        )
    return (state.mixed / state.total.unsqueeze(-1)).to(q_nope_THN.dtype)


def _launch(
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor, Tensor],
    state: _State,
    scalars: tuple[float, int],
    hardware: Hardware,
) -> None:
    tokens, heads, nope = queries[0].shape
    rope, width = queries[1].shape[2], keys[2].shape[2]
    _attend[(cdiv(tokens, QUERIES), heads)](
        *queries,
        *keys,
        state.mixed,
        state.peak,
        state.total,
        *scalars,
        tokens,
        keys[0].shape[1],
        keys[1].stride(0),
        H=heads,
        N=nope,
        R=rope,
        V=width,
        BLOCK_T=QUERIES,
        BLOCK_S=KEYS,
        BLOCK_N=next_power(nope),
        BLOCK_R=next_power(rope),
        BLOCK_V=next_power(width),
        UPCAST=upcasts(),
        num_warps=4,
        num_stages=min(hardware.stages, 2),
    )


@kernel("scale", "visible", "tokens", "context", "rope_stride")
def _attend(
    q_nope: tl.tensor,
    q_rope: tl.tensor,
    k_nope: tl.tensor,
    k_rope: tl.tensor,
    values: tl.tensor,
    mixes: tl.tensor,
    peaks: tl.tensor,
    totals: tl.tensor,
    scale: float,
    visible: int,
    tokens: int,
    context: int,
    rope_stride: int,
    H: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.program_id(1)
    live = token < tokens
    n, r, v = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_V)
    place = token.to(tl.int64) * H + head
    qn = tl.load(q_nope + place[:, None] * N + n[None, :], mask=live[:, None] & (n < N)[None, :], other=0.0)
    qr = tl.load(q_rope + place[:, None] * R + r[None, :], mask=live[:, None] & (r < R)[None, :], other=0.0)
    if UPCAST:
        qn, qr = qn.to(tl.float32), qr.to(tl.float32)
    peak = tl.load(peaks + place, mask=live, other=float("-inf"))
    total = tl.load(totals + place, mask=live, other=0.0)
    value_mask = live[:, None] & (v < V)[None, :]
    mixed = tl.load(mixes + place[:, None] * V + v[None, :], mask=value_mask, other=0.0)
    row = head.to(tl.int64) * context
    stop = tl.minimum(context, visible + tl.program_id(0) * BLOCK_T + BLOCK_T)
    for start in range(0, stop, BLOCK_S):
        key = start + tl.arange(0, BLOCK_S)
        inside = key < context
        where = row + key
        kn = tl.load(k_nope + where[None, :] * N + n[:, None], mask=inside[None, :] & (n < N)[:, None], other=0.0)
        kr = tl.load(
            k_rope + key[None, :].to(tl.int64) * rope_stride + r[:, None],
            mask=inside[None, :] & (r < R)[:, None],
            other=0.0,
        )
        vs = tl.load(values + where[:, None] * V + v[None, :], mask=inside[:, None] & (v < V)[None, :], other=0.0)
        kn, kr, vs = kn.to(qn.dtype), kr.to(qr.dtype), vs.to(qn.dtype)
        scores = tl.dot(qn, kn, input_precision="ieee") + tl.dot(qr, kr, input_precision="ieee")
        seen = inside[None, :] & (key[None, :] <= visible + token[:, None])
        scores = tl.where(seen, scores * scale, float("-inf"))
        peak, total, mixed = add_keys(scores, vs, peak, total, mixed)
    tl.store(peaks + place, peak, mask=live)
    tl.store(totals + place, total, mask=live)
    tl.store(mixes + place[:, None] * V + v[None, :], mixed, mask=value_mask)
