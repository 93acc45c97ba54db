"""Rotary embedding of queries, and the cache write: latent normalised, key rotated, both stored in one pass."""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

import torch
from torch import Tensor

from deepseek_runtime.kernels.interface import Latents
from deepseek_runtime.kernels.triton.language import cdiv, kernel, next_power, tl

HEADS = 16
"""Heads of one program."""


def rotate(x_THR: Tensor, rotations_T: Tensor) -> Tensor:
    """The interleaved pairs of every head turned by the token's rotations, complex64 [T, R / 2]."""
    tokens, heads, width = x_THR.shape
    out = torch.empty(x_THR.shape, dtype=x_THR.dtype, device=x_THR.device)
    _rotate[(tokens, cdiv(heads, HEADS))](
        x_THR,
        torch.view_as_real(rotations_T).contiguous(),
        out,
        x_THR.stride(0),
        x_THR.stride(1),
        H=heads,
        PAIRS=width // 2,
        BLOCK_H=HEADS,
        BLOCK_P=next_power(width // 2),
    )
    return out


def write_latents(joined_TW: Tensor, norm_C: Tensor, eps: float, where: Latents) -> None:
    """Write tokens' [latent C | key R] to rows of the cache."""
    latent, width = len(norm_C), joined_TW.shape[1]
    _write_latents[(len(joined_TW),)](
        joined_TW,
        joined_TW.stride(0),
        norm_C,
        eps,
        torch.view_as_real(where.rotations_T).contiguous(),
        where.slots_T,
        where.cache_SW,
        where.cache_SW.stride(0),
        C=latent,
        PAIRS=(width - latent) // 2,
        BLOCK_C=next_power(latent),
        BLOCK_P=next_power((width - latent) // 2),
    )


@kernel("token_stride", "head_stride")
def _rotate(
    x: tl.tensor,
    rotations: tl.tensor,
    out: tl.tensor,
    token_stride: int,
    head_stride: int,
    H: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    pair = tl.arange(0, BLOCK_P)
    mask = (head < H)[:, None] & (pair < PAIRS)[None, :]
    source = x + token * token_stride + head[:, None] * head_stride + 2 * pair[None, :]
    even = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(source + 1, mask=mask, other=0.0).to(tl.float32)
    angle = rotations + (token * PAIRS + pair) * 2
    cos = tl.load(angle, mask=pair < PAIRS, other=0.0)[None, :]
    sin = tl.load(angle + 1, mask=pair < PAIRS, other=0.0)[None, :]
    target = out + (token * H + head[:, None]) * (2 * PAIRS) + 2 * pair[None, :]
    tl.store(target, (even * cos - odd * sin).to(out.dtype.element_ty), mask=mask)
    tl.store(target + 1, (even * sin + odd * cos).to(out.dtype.element_ty), mask=mask)


@kernel("joined_stride", "eps", "cache_stride")
def _write_latents(
    joined: tl.tensor,
    joined_stride: int,
    norm: tl.tensor,
    eps: float,
    rotations: tl.tensor,
    slots: tl.tensor,
    cache: tl.tensor,
    cache_stride: int,
    C: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    source = joined + token * joined_stride
    target = cache + tl.load(slots + token) * cache_stride
    column = tl.arange(0, BLOCK_C)
    latent = tl.load(source + column, mask=column < C, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(latent * latent, axis=0) / C + eps)
    normed = latent * scale * tl.load(norm + column, mask=column < C, other=0.0).to(tl.float32)
    # Rounded to the compute type first: a wider cache must not hold what the twin never saw.
    normed = normed.to(joined.dtype.element_ty)
    tl.store(target + column, normed.to(cache.dtype.element_ty), mask=column < C)
    pair = tl.arange(0, BLOCK_P)
    inside = pair < PAIRS
    even = tl.load(source + C + 2 * pair, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(source + C + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    angle = rotations + (token * PAIRS + pair) * 2
    cos = tl.load(angle, mask=inside, other=0.0)
    sin = tl.load(angle + 1, mask=inside, other=0.0)
    turned_even = (even * cos - odd * sin).to(joined.dtype.element_ty)
    turned_odd = (even * sin + odd * cos).to(joined.dtype.element_ty)
    tl.store(target + C + 2 * pair, turned_even.to(cache.dtype.element_ty), mask=inside)
    tl.store(target + C + 2 * pair + 1, turned_odd.to(cache.dtype.element_ty), mask=inside)
