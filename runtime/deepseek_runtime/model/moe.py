"""Mixture of experts: this rank computes its own routed experts, the group sums, every rank adds the shared expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.interface import Kernels, SwiGLU
from deepseek_runtime.model.config import RouterConfig


@dataclass(frozen=True, slots=True)
class MoE:
    """Layer [T, D] → [T, D]. Every rank routes the same bits, hence chooses the same experts.

    `slots_E` is where in this rank's stack an expert lies, -1 for those of other ranks.
    """

    router: RouterConfig
    gate_ED: Tensor
    bias_E: Tensor | None
    experts: SwiGLU
    slots_E: Tensor
    shared: SwiGLU | None
    group: Group
    kernels: Kernels

    def __call__(self, x_TD: Tensor) -> Tensor:
        ids, weights = self.kernels.route(x_TD, self.gate_ED, self.bias_E, self.router)
        routed = self.kernels.experts(x_TD, self.slots_E[ids], weights, self.experts)
        summed = self.group.all_reduce_sum(routed.to(x_TD.dtype))
        return summed if self.shared is None else summed + self.kernels.swiglu(x_TD, self.shared)


def expert_slots(experts: int, held: range, device: torch.device) -> Tensor:
    """[E] int64: the place of each expert in the stack of those held, -1 where it is not among them."""
    slots = torch.full((experts,), -1, device=device)
    slots[held.start : held.stop] = torch.arange(len(held), device=device)
    return slots
