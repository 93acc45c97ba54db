"""Linear layers over weights in FP8 blocks, and over dense ones where results must not depend on the batch."""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.triton.hardware import Hardware
from deepseek_runtime.kernels.triton.language import cdiv, kernel, next_power, tl
from deepseek_runtime.kernels.triton.tiles import Layout, Operand, multiply, storage


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows and columns of the output tile of one program, and the threads that share it."""

    rows: int
    columns: int
    warps: int

    @classmethod
    def of(cls, rows: int, *, batch_invariant: bool) -> TileShape:
        """For `rows` rows of x per matrix: few need narrow tiles, so that every multiprocessor streams weights.

        Batch-invariant tiles have one shape, because the order of a sum may depend on it.
        """
        if batch_invariant:
            return cls(64, 64, 4)
        if rows <= 32:
            return cls(next_power(rows), 32, 4)
        return cls(64, 64, 4) if rows <= 256 else cls(64, 128, 4)


LEAST_CHUNKS = 4
"""Chunks of columns that are worth a program of their own."""
SPLIT_ROWS = 32
"""Up to so many rows of x, columns are split: there are too few tiles of the output for all multiprocessors."""


def splits(outputs: int, chunks: int, tile: TileShape, hardware: Hardware) -> int:
    """Programs that share the columns of one output tile, for few rows of x; it follows from the weight alone."""
    wanted = hardware.units // cdiv(outputs, tile.columns)
    return max(1, min(wanted, chunks // LEAST_CHUNKS))


def linear(x_TK: Tensor, weight_NK: Weight, hardware: Hardware, *, batch_invariant: bool = False) -> Tensor:
    """x · wᵀ [T, N] in x's type, summed in float32. The weight must be one that `tiles.is_covered`."""
    tokens, outputs = len(x_TK), weight_NK.shape[0]
    tile = TileShape.of(tokens, batch_invariant=batch_invariant)
    layout = Layout.of(weight_NK, hardware.fp8)
    parts = splits(outputs, layout.chunks, tile, hardware) if tokens <= SPLIT_ROWS and not batch_invariant else 1
    if parts == 1:
        out = torch.empty(tokens, outputs, dtype=x_TK.dtype, device=x_TK.device)
        _launch(x_TK, weight_NK, out, hardware, tile)
        return out
    partial_STN = torch.empty(parts, tokens, outputs, dtype=torch.float32, device=x_TK.device)
    _launch(x_TK, weight_NK, partial_STN, hardware, tile, parts)
    return partial_STN.sum(dim=0).to(x_TK.dtype)


def linear_per_head(x_THK: Tensor, weight_HNK: Tensor, hardware: Hardware) -> Tensor:
    """x times a dense matrix of each head's own [T, H, N], batch-invariant."""
    tokens, heads, _ = x_THK.shape
    out = torch.empty(tokens, heads, weight_HNK.shape[1], dtype=x_THK.dtype, device=x_THK.device)
    _launch(x_THK, weight_HNK, out, hardware, TileShape.of(tokens, batch_invariant=True))
    return out


def _launch(x: Tensor, weight: Weight, out: Tensor, hardware: Hardware, tile: TileShape, parts: int = 1) -> None:
    heads = x.shape[1] if x.ndim == 3 else 1
    operand = Operand.of(x, weight, hardware.fp8)
    _linear[(cdiv(len(x), tile.rows), cdiv(out.shape[-1], tile.columns), heads * parts)](
        operand.values,
        operand.scale,
        *storage(weight),
        out,
        len(x),
        HEADS=heads,
        SPLITS=parts,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        **Layout.of(weight, hardware.fp8).arguments(),
        num_warps=tile.warps,
        num_stages=hardware.stages,
    )


@kernel("tokens")
def _linear(
    x: tl.tensor,
    x_scale: tl.tensor,
    w: tl.tensor,
    w_scale: tl.tensor,
    out: tl.tensor,
    tokens: int,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
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
) -> None:
    token = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(2).to(tl.int64) // SPLITS
    split = tl.program_id(2).to(tl.int64) % SPLITS
    row = token * HEADS + head
    live = token < tokens
    chunks: tl.constexpr = (COLUMN_OFFSET + K + CHUNK - 1) // CHUNK
    share: tl.constexpr = (chunks + SPLITS - 1) // SPLITS
    first = tl.program_id(2) % SPLITS * share
    last = tl.minimum(first + share, chunks)
    total = multiply(
        x, x_scale, row, live, w + head * N * K, w_scale, column, first, last, BLOCK_M, BLOCK_N,
        N, K, CHUNK, ROWS_PER_SCALE, ROW_OFFSET, COLUMN_OFFSET, FP8_WEIGHT, FP8_MATHS, FNUZ, UPCAST,
    )  # fmt: skip
    mask = live[:, None] & (column < N)[None, :]
    target = out + split * tokens * N + row[:, None] * N + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)
