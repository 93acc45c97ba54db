"""One tile of x · wᵀ, for every kind of weight: the inner loop that all matrix kernels share.

Columns of x and w are walked in chunks that coincide with the blocks of weight scales, wherever the slice of a sharded
weight begins in its first block. A chunk's products are summed by the hardware and scaled in float32 afterwards.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.kernels.triton.hardware import Fp8Format, upcasts
from deepseek_runtime.kernels.triton.language import cdiv, inline, tl
from deepseek_runtime.kernels.triton.quantise import quantise

FP8_TYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
DENSE_CHUNK = 64
"""Columns of a chunk where no scales say otherwise."""


@dataclass(frozen=True, slots=True)
class Operand:
    """Arguments of `multiply` that belong to x: values [T, K] and, where they are FP8, scales [T, G]."""

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x_TK: Tensor, weight: Weight, fp8: Fp8Format | None, used: Tensor | None = None) -> Operand:
        """x as it is multiplied with `weight`: in FP8 where weight and hardware are, otherwise as it is.

        Rows from `used` [1] on, where that is given, hold nothing and are not looked at.
        """
        x_TK = x_TK.contiguous()
        if fp8 is None or not isinstance(weight, Fp8Weight) or weight.values.dtype is not fp8.dtype:
            return cls(x_TK, x_TK)
        quantised = quantise(x_TK, weight.block[1], weight.offset[1], fp8, used)
        return cls(quantised.values.view(torch.uint8), quantised.scale)


@dataclass(frozen=True, slots=True)
class Layout:
    """Compile-time arguments of `multiply`: shapes, blocks of scales, kind of maths."""

    N: int
    K: int
    CHUNK: int
    ROWS_PER_SCALE: int
    ROW_OFFSET: int
    COLUMN_OFFSET: int
    FP8_WEIGHT: bool
    FP8_MATHS: bool
    FNUZ: bool
    UPCAST: bool

    @classmethod
    def of(cls, weight: Weight, fp8: Fp8Format | None) -> Layout:
        """How to walk `weight` [..., N, K]."""
        rows, columns = weight.shape[-2:]
        if not isinstance(weight, Fp8Weight):
            return cls(rows, columns, DENSE_CHUNK, 1, 0, 0, False, False, False, upcasts())
        block, offset, stored = weight.block, weight.offset, weight.values.dtype
        multiplies = fp8 is not None and fp8.dtype is stored
        fnuz = stored is torch.float8_e4m3fnuz
        return cls(rows, columns, block[1], block[0], offset[0], offset[1], True, multiplies, fnuz, upcasts())

    @property
    def chunks(self) -> int:
        return cdiv(self.COLUMN_OFFSET + self.K, self.CHUNK)

    def arguments(self) -> dict[str, Any]:
        return asdict(self)


def storage(weight: Weight) -> tuple[Tensor, Tensor]:
    """Values and scales as `multiply` wants them: FP8 values as bytes, so that hardware without FP8 can load them."""
    if isinstance(weight, Fp8Weight):
        return weight.values.contiguous().view(torch.uint8), weight.scale.contiguous()
    return weight.contiguous(), weight


def is_covered(weight: Weight) -> bool:
    """Whether `multiply` can walk this weight; if not, plain torch must."""
    if not isinstance(weight, Fp8Weight):
        return weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
    rows, columns = weight.shape[-2:]
    blocks = (cdiv(weight.offset[0] + rows, weight.block[0]), cdiv(weight.offset[1] + columns, weight.block[1]))
    chunk = weight.block[1]
    is_block = chunk in (32, 64, 128, 256) and tuple(weight.scale.shape[-2:]) == blocks
    return is_block and weight.values.dtype in FP8_TYPES and weight.scale.dtype is torch.float32


@inline
def multiply(
    x: tl.tensor,
    x_scale: tl.tensor,
    row: tl.tensor,
    live: tl.tensor,
    w: tl.tensor,
    w_scale: tl.tensor,
    column: tl.tensor,
    first: int,
    last: int,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
    ROW_OFFSET: tl.constexpr,
    COLUMN_OFFSET: tl.constexpr,
    FP8_WEIGHT: tl.constexpr,
    FP8_MATHS: tl.constexpr,
    FNUZ: tl.constexpr,
    UPCAST: tl.constexpr,
) -> tl.tensor:
    """Float32 [BLOCK_M, BLOCK_N] of rows `row` of x, where `live`, and rows `column` of one matrix w [N, K].

    Summed over the chunks from `first` to before `last`.
    """
    chunks: tl.constexpr = (COLUMN_OFFSET + K + CHUNK - 1) // CHUNK
    ragged: tl.constexpr = (COLUMN_OFFSET != 0) or (K % CHUNK != 0)
    inside = column < N
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for chunk in range(first, last):
        k = chunk * CHUNK - COLUMN_OFFSET + tl.arange(0, CHUNK)
        x_mask, w_mask = live[:, None], inside[None, :]
        if ragged:
            within = (k >= 0) & (k < K)
            x_mask, w_mask = x_mask & within[None, :], w_mask & within[:, None]
        x_tile = tl.load(x + row[:, None] * K + k[None, :], mask=x_mask, other=0)
        w_tile = tl.load(w + column[None, :].to(tl.int64) * K + k[:, None], mask=w_mask, other=0)
        if FP8_MATHS:
            part = tl.dot(_fp8(x_tile, FNUZ, UPCAST), _fp8(w_tile, FNUZ, UPCAST))
            part *= tl.load(x_scale + row * chunks + chunk, mask=live, other=0.0)[:, None]
        elif FP8_WEIGHT:
            part = _dot(x_tile, _decode(w_tile).to(x_tile.dtype), UPCAST)
        else:
            part = _dot(x_tile, w_tile.to(x_tile.dtype), UPCAST)
        if FP8_WEIGHT:
            scale_row = (column + ROW_OFFSET) // ROWS_PER_SCALE
            multiplier = tl.load(w_scale + scale_row * chunks + chunk, mask=inside, other=0.0)
            unit: tl.constexpr = 1.0 if FP8_MATHS else (128.0 if FNUZ else 256.0)
            part *= (multiplier * unit)[None, :]
        total += part
    return total


@inline
def _dot(a: tl.tensor, b: tl.tensor, UPCAST: tl.constexpr) -> tl.tensor:
    """a · b in float32; float32 operands are never rounded to TF32."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@inline
def _decode(bits: tl.tensor) -> tl.tensor:
    """e4m3fn bytes over 256, e4m3fnuz bytes over 128, exact in float16. Needs no FP8 instruction.

    Sign, exponent and mantissa are shifted into place; only the exponent's bias differs, by eight or seven.
    """
    wide = bits.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)


@inline
def _fp8(bits: tl.tensor, FNUZ: tl.constexpr, UPCAST: tl.constexpr) -> tl.tensor:
    """Bytes as the FP8 that the hardware multiplies."""
    if UPCAST:
        return _decode(bits).to(tl.float32) * (128.0 if FNUZ else 256.0)
    elif FNUZ:
        return bits.to(tl.float8e4b8, bitcast=True)
    else:
        return bits.to(tl.float8e4nv, bitcast=True)
