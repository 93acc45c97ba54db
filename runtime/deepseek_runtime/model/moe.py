"""Mixture of experts: routed experts wherever they lie, and the shared expert on the token's own rank meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from deepseek_runtime.dist.exchange import Arrivals, Exchange
from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.interface import Kernels, SwiGLU
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.experts import ExpertTable


@dataclass(frozen=True, slots=True)
class MoE:
    """Layer [T, D] → [T, D].

    Without `exchange` every rank has all tokens: it routes the same bits, hence makes the same choice, computes its own
    experts, and the group sums. With it a rank has tokens of its own, which travel.
    """

    router: RouterConfig
    gate_ED: Tensor
    bias_E: Tensor | None
    experts: SwiGLU
    table: ExpertTable
    shared: SwiGLU | None
    group: Group
    exchange: Exchange | None
    kernels: Kernels

    def __call__(self, x_TD: Tensor) -> Tensor:
        ids, weights = self.kernels.route(x_TD, self.gate_ED, self.bias_E, self.router)
        finish = self._start(x_TD, ids, weights)
        if self.shared is None:
            return finish()
        shared_TD = self.kernels.swiglu(x_TD, self.shared)
        return shared_TD.add_(finish())

    def serve(self, nothing_0D: Tensor) -> None:
        """Compute for the tokens of other ranks in a step that gives this one none of its own."""
        assert self.exchange is not None, "without an exchange a rank without tokens has nothing to do"
        none_0K = self.gate_ED.new_empty(0, self.router.chosen)
        self._travel(self.exchange, nothing_0D, none_0K.long(), none_0K)()

    def _start(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Callable[[], Tensor]:
        """Begin the routed part; what is returned waits for it."""
        if self.exchange is not None:
            # Were every rank to begin with the first copies, those would do the work of a step with few tokens.
            slots_TK = self.table.locate(ids_TK, first_row=self.group.rank)
            return self._travel(self.exchange, x_TD, slots_TK, weights_TK)
        routed = self.kernels.experts(x_TD, self.table.locate(ids_TK), weights_TK, self.experts)
        # Even a cast that does nothing takes two microseconds.
        return self.group.start_sum(routed if routed.dtype == x_TD.dtype else routed.to(x_TD.dtype))

    def _travel(self, exchange: Exchange, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor) -> Callable[[], Tensor]:
        arrivals = exchange.dispatch(x_TD, slots_TK, weights_TK)
        return exchange.start_combine(self._visited(arrivals), arrivals)

    def _visited(self, arrivals: Arrivals) -> Tensor:
        if not len(arrivals.x_ND):
            return arrivals.x_ND
        return self.kernels.experts(arrivals.x_ND, arrivals.slots_NK, arrivals.weights_NK, self.experts)
