"""Activations to FP8: every token has one multiplier for each group of channels that shares a weight scale."""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.kernels.triton.hardware import Fp8Format
from deepseek_runtime.kernels.triton.language import INTERPRETED, cdiv, inline, kernel, tl

SMALLEST_PEAK = 1e-10
"""Floor of a group's largest value, so that a group of zeros has a scale."""
TOKENS = 4
"""Tokens of one program."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """`values` [T, K] FP8 · `scale` [T, G] float32, one per group of channels."""

    values: Tensor
    scale: Tensor


def quantise(x_TK: Tensor, group: int, offset: int, form: Fp8Format, used: Tensor | None = None) -> Quantised:
    """Round each token's groups to `form`; the first group has `offset` channels fewer than `group`.

    Only the first `used` [1] tokens are read and written where that is given, a number that the host need not know.
    """
    tokens, channels = x_TK.shape
    groups = cdiv(offset + channels, group)
    values = torch.empty_like(x_TK, dtype=form.dtype, memory_format=torch.contiguous_format)
    scale = torch.empty(tokens, groups, dtype=torch.float32, device=x_TK.device)
    _quantise[(cdiv(tokens, TOKENS), groups)](
        x_TK,
        values,
        scale,
        used,
        tokens,
        x_TK.stride(0),
        K=channels,
        GROUP=group,
        OFFSET=offset,
        TOKENS=TOKENS,
        MAXIMUM=form.maximum,
        FLOOR=SMALLEST_PEAK,
        POWER_OF_TWO=form.power_of_two,
        FNUZ=form.is_fnuz,
        ROUND=INTERPRETED,
    )
    return Quantised(values, scale)


def quantise_reference(x_TK: Tensor, group: int, offset: int, form: Fp8Format) -> Quantised:
    """The twin of `quantise` in plain torch."""
    groups = cdiv(offset + x_TK.shape[1], group)
    padding = (offset, groups * group - offset - x_TK.shape[1])
    grouped = torch.nn.functional.pad(x_TK.float(), padding).view(len(x_TK), groups, group)
    scale = grouped.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_PEAK) / form.maximum
    if form.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    rounded = (grouped / scale).clamp(-form.maximum, form.maximum).flatten(1)
    return Quantised(rounded[:, offset : offset + x_TK.shape[1]].to(form.dtype), scale.squeeze(-1))


@kernel("tokens", "stride")
def _quantise(
    x: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    used: tl.tensor | None,
    tokens: int,
    stride: int,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    OFFSET: tl.constexpr,
    TOKENS: tl.constexpr,
    MAXIMUM: tl.constexpr,
    FLOOR: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    FNUZ: tl.constexpr,
    ROUND: tl.constexpr,
) -> None:
    if used is not None:
        tokens = tl.load(used)
    group = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    column = group * GROUP - OFFSET + tl.arange(0, GROUP)
    live = (row < tokens)[:, None] & ((column >= 0) & (column < K))[None, :]
    block = tl.load(x + row[:, None] * stride + column[None, :], mask=live, other=0.0).to(tl.float32)
    peak = tl.maximum(tl.max(tl.abs(block), axis=1), FLOOR)
    # Divisions are rounded as the twin's: the fast ones could move a value to the neighbouring step.
    multiplier = tl.div_rn(peak, tl.full((TOKENS,), MAXIMUM, tl.float32))
    if POWER_OF_TWO:
        multiplier = _up_to_power_of_two(multiplier)
    exact = tl.div_rn(block, tl.broadcast_to(multiplier[:, None], (TOKENS, GROUP)))
    rounded = tl.minimum(tl.maximum(exact, -MAXIMUM), MAXIMUM)
    if ROUND:
        rounded = _round_to_e4m3(rounded, FNUZ)
    tl.store(values + row[:, None] * K + column[None, :], rounded.to(values.dtype.element_ty), mask=live)
    tl.store(scale + row * tl.cdiv(OFFSET + K, GROUP) + group, multiplier, mask=row < tokens)


@inline
def _up_to_power_of_two(x: tl.tensor) -> tl.tensor:
    """Exact, unlike exp2(ceil(log2 x)): any mantissa bit carries into the exponent, then the mantissa is cut."""
    bits = x.to(tl.int32, bitcast=True) + 0x7FFFFF
    return (bits & ~0x7FFFFF).to(tl.float32, bitcast=True)


@inline
def _round_to_e4m3(x: tl.tensor, FNUZ: tl.constexpr) -> tl.tensor:
    """Nearest even of three mantissa bits, in float32: the interpreter's own cast loses carries into the exponent."""
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF).to(tl.float32, bitcast=True)
    # Adding 1.5 · 2^23 quanta leaves no bit below the smallest subnormal, 2^-9 (fnuz: 2^-10).
    magic: tl.constexpr = 12288.0 if FNUZ else 24576.0
    smallest: tl.constexpr = 0.0078125 if FNUZ else 0.015625
    return tl.where(tl.abs(x) < smallest, (x + magic) - magic, normal)
