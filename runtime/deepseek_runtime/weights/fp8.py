"""FP8 blocks on their way from the file to memory: which scales a slice needs, and the other FP8 of MI300."""

from __future__ import annotations

import torch
from torch import Tensor

FNUZ_NAN = -128
"""Byte 0x80: minus zero in e4m3fn, the only NaN in e4m3fnuz."""


def covering_blocks(elements: range, block: int) -> tuple[range, int]:
    """The blocks that a non-empty range of rows or columns touches, and where in the first block the range begins.

    Blocks are counted in the whole matrix, so a slice may begin and end inside one.
    """
    first = elements.start // block
    return range(first, (elements.stop - 1) // block + 1), elements.start - first * block


def to_fnuz(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same real numbers for hardware that knows only e4m3fnuz (gfx942): float8_e4m3fnuz values and their scale.

    The same byte means half as much there, so the scale doubles; minus zero, there a NaN, becomes zero. The NaN bytes
    of e4m3fn (0x7F, 0xFF) do not occur in weights.
    """
    raw = values.view(torch.int8)
    return torch.where(raw == FNUZ_NAN, 0, raw).to(torch.int8).view(torch.float8_e4m3fnuz), scale * 2.0
