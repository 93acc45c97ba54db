"""SwiGLU layers, one or a stack of experts: silu(gate x) · up x in one kernel, the way down in a second, the weighted
sum over a token's experts in a third. Sums are float32 and in a fixed order: no atomics.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import SwiGLU
from deepseek_runtime.kernels.triton.gemm import TileShape
from deepseek_runtime.kernels.triton.grouping import Tiles, group_by_expert, one_group, usual_rows
from deepseek_runtime.kernels.triton.hardware import Hardware
from deepseek_runtime.kernels.triton.language import cdiv, kernel, next_power, tl
from deepseek_runtime.kernels.triton.tiles import Layout, Operand, multiply, storage

TOKENS_AT_ONCE = 4096
"""Tokens whose expert outputs are held together before they are summed: 470 MB in bf16 at V3's widths."""


def experts(
    x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, stack: SwiGLU, hardware: Hardware, *, batch_invariant: bool
) -> Tensor:
    """Weighted sum [T, D] float32 over the chosen experts of the stack; slot -1 is one that is not in it."""
    count = stack.gate.shape[0]
    out = torch.empty(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    for start in range(0, len(x_TD), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        slots = slots_TK[part].contiguous()
        rows = 64 if batch_invariant else usual_rows(slots.numel(), count)
        tiles = group_by_expert(slots, count, rows)
        shape = TileShape(rows, 64, 4)
        gated_AF = gate_and_up(x_TD[part], stack.gate, stack.up, tiles, shape, hardware)
        down_AD = _down(gated_AF, stack.down, tiles, shape, hardware)
        _combine(down_AD, slots, weights_TK[part].contiguous(), out[part])
    return out


def swiglu(x_TD: Tensor, weights: SwiGLU, hardware: Hardware, *, batch_invariant: bool) -> Tensor:
    """silu(gate x) · up x [T, F] of one dense layer: all of it but the way down."""
    shape = TileShape.of(len(x_TD), batch_invariant=batch_invariant)
    tiles = one_group(len(x_TD), shape.rows, x_TD.device)
    return gate_and_up(x_TD, weights.gate, weights.up, tiles, shape, hardware)


def gate_and_up(x_TD: Tensor, gate: Weight, up: Weight, tiles: Tiles, shape: TileShape, hardware: Hardware) -> Tensor:
    """silu(gate x) · up x [A, F] of every sorted assignment, in x's type. Gate and up must have one layout.

    Rows of assignments without an expert, the last ones, are not written.
    """
    assignments, width = len(tiles.order_A), gate.shape[-2]
    out = torch.empty(assignments, width, dtype=x_TD.dtype, device=x_TD.device)
    x = Operand.of(x_TD, gate, hardware.fp8)
    _gate_and_up[(len(tiles), cdiv(width, shape.columns))](
        x.values,
        x.scale,
        *storage(gate),
        *storage(up),
        out,
        tiles.order_A,
        tiles.expert,
        tiles.first,
        tiles.count,
        CHOSEN=assignments // max(len(x_TD), 1),
        BLOCK_M=shape.rows,
        BLOCK_N=shape.columns,
        **Layout.of(gate, hardware.fp8).arguments(),
        num_warps=shape.warps,
        num_stages=hardware.stages,
    )
    return out


def _down(gated_AF: Tensor, down: Weight, tiles: Tiles, shape: TileShape, hardware: Hardware) -> Tensor:
    """down · h [A, D] of every assignment, back in the order of tokens; those without an expert are not written."""
    out = torch.empty(len(gated_AF), down.shape[-2], dtype=gated_AF.dtype, device=gated_AF.device)
    h = Operand.of(gated_AF, down, hardware.fp8, tiles.used)
    _down_kernel[(len(tiles), cdiv(down.shape[-2], shape.columns))](
        h.values,
        h.scale,
        *storage(down),
        out,
        tiles.order_A,
        tiles.expert,
        tiles.first,
        tiles.count,
        BLOCK_M=shape.rows,
        BLOCK_N=shape.columns,
        **Layout.of(down, hardware.fp8).arguments(),
        num_warps=shape.warps,
        num_stages=hardware.stages,
    )
    return out


def _combine(parts_AD: Tensor, slots_TK: Tensor, weights_TK: Tensor, out_TD: Tensor) -> None:
    tokens, chosen = slots_TK.shape
    width = out_TD.shape[1]
    block = min(next_power(width), 1024)
    _combine_kernel[(tokens, cdiv(width, block))](
        parts_AD, slots_TK, weights_TK, out_TD, D=width, CHOSEN=chosen, BLOCK_D=block
    )


@kernel()
def _gate_and_up(
    x: tl.tensor,
    x_scale: tl.tensor,
    gate: tl.tensor,
    gate_scale: tl.tensor,
    up: tl.tensor,
    up_scale: tl.tensor,
    out: tl.tensor,
    order: tl.tensor,
    experts: tl.tensor,
    firsts: tl.tensor,
    counts: tl.tensor,
    CHOSEN: tl.constexpr,
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
    tile = tl.program_id(0)
    count = tl.load(counts + tile)
    if count == 0:
        return
    expert = tl.load(experts + tile).to(tl.int64)
    live = tl.arange(0, BLOCK_M) < count
    place = (tl.load(firsts + tile) + tl.arange(0, BLOCK_M)).to(tl.int64)
    token = tl.load(order + place, mask=live, other=0).to(tl.int64) // CHOSEN
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunks: tl.constexpr = (COLUMN_OFFSET + K + CHUNK - 1) // CHUNK
    scales: tl.constexpr = ((ROW_OFFSET + N + ROWS_PER_SCALE - 1) // ROWS_PER_SCALE) * chunks
    gated = multiply(
        x, x_scale, token, live, gate + expert * N * K, gate_scale + expert * scales, column, 0, chunks,
        BLOCK_M, BLOCK_N, N, K, CHUNK, ROWS_PER_SCALE, ROW_OFFSET, COLUMN_OFFSET, FP8_WEIGHT, FP8_MATHS, FNUZ, UPCAST,
    )  # fmt: skip
    raised = multiply(
        x, x_scale, token, live, up + expert * N * K, up_scale + expert * scales, column, 0, chunks,
        BLOCK_M, BLOCK_N, N, K, CHUNK, ROWS_PER_SCALE, ROW_OFFSET, COLUMN_OFFSET, FP8_WEIGHT, FP8_MATHS, FNUZ, UPCAST,
    )  # fmt: skip
    product = gated * tl.sigmoid(gated) * raised
    mask = live[:, None] & (column < N)[None, :]
    tl.store(out + place[:, None] * N + column[None, :], product.to(out.dtype.element_ty), mask=mask)


@kernel()
def _down_kernel(
    h: tl.tensor,
    h_scale: tl.tensor,
    down: tl.tensor,
    down_scale: tl.tensor,
    out: tl.tensor,
    order: tl.tensor,
    experts: tl.tensor,
    firsts: tl.tensor,
    counts: tl.tensor,
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
    tile = tl.program_id(0)
    count = tl.load(counts + tile)
    if count == 0:
        return
    expert = tl.load(experts + tile).to(tl.int64)
    live = tl.arange(0, BLOCK_M) < count
    place = (tl.load(firsts + tile) + tl.arange(0, BLOCK_M)).to(tl.int64)
    assignment = tl.load(order + place, mask=live, other=0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunks: tl.constexpr = (COLUMN_OFFSET + K + CHUNK - 1) // CHUNK
    scales: tl.constexpr = ((ROW_OFFSET + N + ROWS_PER_SCALE - 1) // ROWS_PER_SCALE) * chunks
    total = multiply(
        h, h_scale, place, live, down + expert * N * K, down_scale + expert * scales, column, 0, chunks,
        BLOCK_M, BLOCK_N, N, K, CHUNK, ROWS_PER_SCALE, ROW_OFFSET, COLUMN_OFFSET, FP8_WEIGHT, FP8_MATHS, FNUZ, UPCAST,
    )  # fmt: skip
    mask = live[:, None] & (column < N)[None, :]
    tl.store(out + assignment[:, None] * N + column[None, :], total.to(out.dtype.element_ty), mask=mask)


@kernel()
def _combine_kernel(
    parts: tl.tensor,
    slots: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    D: tl.constexpr,
    CHOSEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for choice in range(0, CHOSEN):
        place = token * CHOSEN + choice
        width = tl.where(tl.load(slots + place) < 0, 0, D)
        part = tl.load(parts + place * D + column, mask=column < width, other=0.0)
        total += part.to(tl.float32) * tl.load(weights + place)
    tl.store(out + token * D + column, total, mask=column < D)
