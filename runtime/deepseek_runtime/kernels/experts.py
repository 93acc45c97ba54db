"""A stack of SwiGLU layers of which each token visits a few."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepseek_runtime.kernels.interface import SwiGLU


def grouped_experts(
    x_TD: Tensor,
    slots_TK: Tensor,
    weights_TK: Tensor,
    experts: SwiGLU,
    swiglu: Callable[[Tensor, SwiGLU], Tensor],
) -> Tensor:
    """Weighted sum [T, D] float32 over the chosen experts, -1 for one that is not in the stack.

    Tokens are sorted by expert, so that each expert's weights are read once; one host sync tells the group sizes.
    """
    chosen = slots_TK.flatten()
    absent, *counts = torch.bincount(chosen + 1, minlength=experts.gate.shape[0] + 1).tolist()
    order = chosen.argsort(stable=True)[absent:]
    token = order // slots_TK.shape[1]
    parts = torch.split(x_TD[token], counts)
    out = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    if not len(order):
        return out
    routed = torch.cat([swiglu(part, experts[e]) for e, part in enumerate(parts) if len(part)])
    return out.index_add_(0, token, routed.float() * weights_TK.flatten()[order].unsqueeze(-1))
