"""Feed-forward layers: one SwiGLU, and a stack of them of which each token visits a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deepseek_runtime.kernels.fp8 import Weight, linear


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """Weights of down(silu(gate x) · up x): gate and up [F, D], down [D, F]; or stacks of them [E, …]."""

    gate: Weight
    up: Weight
    down: Weight

    def __getitem__(self, index: int) -> SwiGLU:
        """One expert of a stack."""
        return SwiGLU(self.gate[index], self.up[index], self.down[index])

    def __call__(self, x_TD: Tensor) -> Tensor:
        return linear(functional.silu(linear(x_TD, self.gate)) * linear(x_TD, self.up), self.down)


def grouped_experts(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: SwiGLU, first: int) -> Tensor:
    """Weighted sum [T, D] float32 over those chosen experts that are in the stack, which begins at id `first`.

    Tokens are sorted by expert, so that each expert's weights are read once; one host sync tells the group sizes.
    """
    held = experts.gate.shape[0]
    local = (ids_TK.flatten() - first).clamp(-1, held)
    before, *counts, after = torch.bincount(local + 1, minlength=held + 2).tolist()
    order = local.argsort(stable=True)[before : local.numel() - after]
    token = order // ids_TK.shape[1]
    parts = torch.split(x_TD[token], counts)
    out = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    if not len(order):
        return out
    routed = torch.cat([experts[e](part) for e, part in enumerate(parts) if len(part)])
    return out.index_add_(0, token, routed.float() * weights_TK.flatten()[order].unsqueeze(-1))
