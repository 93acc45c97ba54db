"""Weights stored as FP8 e4m3 in blocks that share a scale, and linear layers over them.

`weight_scale_inv` multiplies, in spite of its name: w ≈ fp8 · scale[row // 128, column // 128], rows and columns
counted in the whole matrix. A slice keeps every scale block it touches, and where in its first block it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A matrix [out, in], or a stack [E, out, in], of e4m3 values with one multiplier per block.

    `scale` [..., blocks of rows, blocks of columns] is float32; `offset` is where in its block the first element lies.
    """

    values: Tensor
    scale: Tensor
    block: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes

    def __getitem__(self, index: int) -> Fp8Weight:
        """One matrix of a stack."""
        return Fp8Weight(self.values[index], self.scale[index], self.block, self.offset)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The real values in `dtype`."""
        rows, columns = self.values.shape[-2:]
        by_row = _spread(self.scale.mT, self.block[0], self.offset[0], rows).mT
        scale = _spread(by_row, self.block[1], self.offset[1], columns)
        return decode_e4m3(self.values).mul_(scale).to(dtype)


Weight = Tensor | Fp8Weight


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [..., in] times weightᵀ, weight [out, in], in x's dtype. FP8 blocks are dequantised for the call only."""
    dense = weight.dequantise(x.dtype) if isinstance(weight, Fp8Weight) else weight
    out: Tensor = functional.linear(x, dense)
    return out


def decode_e4m3(values: Tensor) -> Tensor:
    """Float32 of float8_e4m3fn values; a new tensor. The stored NaN bytes 0x7F and 0xFF do not occur in weights."""
    if values.device.type != "cpu":
        return values.float()
    # Eight times quicker than torch's own cast on CPU: shifted into place, sign, exponent and mantissa are those of a
    # float16 whose exponent bias is 8 larger. The sign extension leaves a copy of the sign in the top exponent bit.
    halves = (values.view(torch.int8).to(torch.int16) << 7) & ~0x4000
    return halves.view(torch.float16).float().mul_(256.0)


def _spread(scale: Tensor, block: int, offset: int, size: int) -> Tensor:
    """One scale per element of the last dim from one per block, `size` of them from `offset` within the first block."""
    if scale.shape[-1] == 1:
        return scale
    return scale.unsqueeze(-1).expand(*scale.shape, block).flatten(-2)[..., offset : offset + size]
