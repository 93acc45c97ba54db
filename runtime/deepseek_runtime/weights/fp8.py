"""FP8 blocks on their way from the file to memory: which scales a slice needs, and the other FP8 of MI300."""

from __future__ import annotations

import torch
from torch import Tensor

FNUZ_NAN = -128
"""Byte 0x80: minus zero in e4m3fn, the only NaN in e4m3fnuz."""
FNUZ_SCALE = 2.0
"""A byte means half as much in e4m3fnuz as in e4m3fn, so its scale doubles."""


def covering_blocks(elements: range, block: int) -> tuple[range, int]:
    """The blocks that a non-empty range of rows or columns touches, and where in the first block the range begins.

    Blocks are counted in the whole matrix, so a slice may begin and end inside one.
    """
    first = elements.start // block
    return range(first, (elements.stop - 1) // block + 1), elements.start - first * block


def scale_blocks(values: Tensor, scale: Tensor, block: tuple[int, int], offset: tuple[int, int]) -> None:
    """Multiply a float32 matrix by its blocks' scales, in place; it begins `offset` inside the first block.

    Whole blocks of columns are multiplied as views: one multiplier for each element would be as large as the matrix.
    """
    rows, columns = values.shape
    by_row = scale[(torch.arange(rows, device=scale.device) + offset[0]) // block[0]]
    width = block[1]
    head = min(-offset[1] % width, columns)
    whole = (columns - head) // width
    if head:
        values[:, :head].mul_(by_row[:, :1])
    first = 1 if head else 0
    middle = values[:, head : head + whole * width]
    middle.view(rows, whole, width).mul_(by_row[:, first : first + whole].unsqueeze(-1))
    if head + whole * width < columns:
        values[:, head + whole * width :].mul_(by_row[:, first + whole :])


def to_fnuz(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same real numbers for hardware that knows only e4m3fnuz (gfx942): float8_e4m3fnuz values and their scale."""
    return fnuz_values(values), scale * FNUZ_SCALE


def fnuz_values(values: Tensor) -> Tensor:
    """Values of float8_e4m3fn as float8_e4m3fnuz of half their size; minus zero, there a NaN, becomes zero.

    The NaN bytes of e4m3fn (0x7F, 0xFF) do not occur in weights.
    """
    raw = values.view(torch.int8)
    return torch.where(raw == FNUZ_NAN, 0, raw).to(torch.int8).view(torch.float8_e4m3fnuz)
