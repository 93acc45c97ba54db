"""Root-mean-square norm, alone or with the residual sum before it: one program a row, one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek_runtime.kernels.triton.language import kernel, next_power, tl


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) · weight [T, D], in x's type."""
    out = torch.empty_like(x_TD)
    _launch(x_TD, x_TD, weight_D, (x_TD, out), eps)
    return out


def add_rms_norm(residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The new residual, residual + x, and its normalised form. The sum is rounded to its type before it is normed."""
    summed, out = torch.empty_like(residual_TD), torch.empty_like(residual_TD)
    _launch(residual_TD, x_TD, weight_D, (summed, out), eps)
    return summed, out


def _launch(a_TD: Tensor, b_TD: Tensor, weight_D: Tensor, results: tuple[Tensor, Tensor], eps: float) -> None:
    width = a_TD.shape[1]
    summed, out = results
    block = next_power(width)
    _rms_norm[(len(a_TD),)](
        a_TD, b_TD, weight_D, summed, out, eps, D=width, BLOCK_D=block, ADD=a_TD is not b_TD,
        num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip


@kernel("eps")
def _rms_norm(  # noqa: PLR0913, PLR0917
    a: tl.tensor,
    b: tl.tensor,
    weight: tl.tensor,
    summed: tl.tensor,
    out: tl.tensor,
    eps: float,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    start = tl.program_id(0).to(tl.int64) * D
    row = tl.load(a + start + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        row += tl.load(b + start + column, mask=inside, other=0.0).to(tl.float32)
        rounded = row.to(summed.dtype.element_ty)
        tl.store(summed + start + column, rounded, mask=inside)
        row = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(row * row, axis=0) / D + eps)
    normed = row * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + column, normed.to(out.dtype.element_ty), mask=inside)
