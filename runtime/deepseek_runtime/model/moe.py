"""Mixture of experts: this rank computes its own routed experts, the group sums, every rank adds the shared expert."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.experts import SwiGLU, grouped_experts
from deepseek_runtime.kernels.router import route
from deepseek_runtime.model.config import RouterConfig


@dataclass(frozen=True, slots=True)
class MoE:
    """Layer [T, D] → [T, D]. Every rank routes the same bits, hence chooses the same experts."""

    router: RouterConfig
    gate_ED: Tensor
    bias_E: Tensor | None
    experts: SwiGLU
    first_expert: int
    shared: SwiGLU | None
    group: Group

    def __call__(self, x_TD: Tensor) -> Tensor:
        ids, weights = route(x_TD, self.gate_ED, self.bias_E, self.router)
        routed = grouped_experts(x_TD, ids, weights, self.experts, self.first_expert)
        summed = self.group.all_reduce_sum(routed.to(x_TD.dtype))
        return summed if self.shared is None else summed + self.shared(x_TD)
