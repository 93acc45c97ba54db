"""Sends tokens to the ranks that hold their experts, and the experts' sums back home.

A rank is sent each token once, however many of its experts the token visits, with activations in the compute type. It
answers with one sum over its experts, again in the compute type: half the traffic of float32, and the rounding of a sum
that is added in float32 to at most a few others is far below that of the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Tokens that visit this rank's experts: `x_ND`, `slots_NK` in its own stack (-1: another rank's), `weights_NK`.

    `handle` is whatever `combine` needs to send the answers back.
    """

    x_ND: Tensor
    slots_NK: Tensor
    weights_NK: Tensor
    handle: Any


class Exchange(Protocol):
    """What a layer of experts needs. DeepEP's and AITER's kernels have this shape too, and would plug in here.

    Every rank calls each method once per layer, also without tokens.
    """

    def dispatch(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor) -> Arrivals:
        """Send this rank's tokens to the ranks of their slots, counted over all ranks; what came from all of them."""
        ...

    def start_combine(self, y_ND: Tensor, arrivals: Arrivals) -> Callable[[], Tensor]:
        """Begin to send one sum per arrival home; what is returned waits for this rank's own tokens' sums [T, D]."""
        ...


@dataclass(frozen=True, slots=True)
class _Journey:
    """Which of this rank's `tokens` rows went out, in the order of ranks: `sent` to each; and `received` from each."""

    rows_N: Tensor
    sent: list[int]
    received: list[int]
    tokens: int


class AllToAll:
    """The exchange in plain torch: counts, then one message with everything about a token, then the answers.

    Works with gloo, NCCL and RCCL. The counts must be known on the host, which costs a GPU one sync a layer and rules
    out graphs: that is what dedicated kernels are for.
    """

    def __init__(self, group: Group, slots_per_rank: int) -> None:
        self._group = group
        self._slots_per_rank = slots_per_rank

    def dispatch(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor) -> Arrivals:
        """See `Exchange`."""
        target_TK = slots_TK // self._slots_per_rank
        visits_WT = torch.zeros(self._group.world_size, len(x_TD), dtype=torch.bool, device=x_TD.device)
        visits_WT[target_TK, torch.arange(len(x_TD), device=x_TD.device).unsqueeze(1)] = True
        target_N, rows_N = visits_WT.nonzero(as_tuple=True)
        sent, received = self._group.exchange_counts(visits_WT.sum(dim=1))
        here_NK = target_TK[rows_N] == target_N.unsqueeze(1)
        slots_NK = torch.where(here_NK, slots_TK[rows_N] % self._slots_per_rank, -1)
        message = _pack(x_TD[rows_N], slots_NK.to(torch.int32), weights_TK[rows_N])
        came = self._group.all_to_all(message, sent, received)
        x_ND, slots_NK, weights_NK = _unpack(came, x_TD, slots_TK.shape[1])
        return Arrivals(x_ND, slots_NK.long(), weights_NK, _Journey(rows_N, sent, received, len(x_TD)))

    def start_combine(self, y_ND: Tensor, arrivals: Arrivals) -> Callable[[], Tensor]:
        """See `Exchange`."""
        journey: _Journey = arrivals.handle
        receive = self._group.start_all_to_all(y_ND.to(arrivals.x_ND.dtype), journey.received, journey.sent)
        return lambda: _sum_at_home(receive(), journey)


def _sum_at_home(y_ND: Tensor, journey: _Journey) -> Tensor:
    """Sums [T, D] of the answers, added in float32 and in the order of ranks: the same bits in every run."""
    out_TD = torch.zeros(journey.tokens, y_ND.shape[1], dtype=torch.float32, device=y_ND.device)
    for rows, answers in zip(torch.split(journey.rows_N, journey.sent), torch.split(y_ND, journey.sent), strict=True):
        out_TD.index_add_(0, rows, answers.float())
    return out_TD.to(y_ND.dtype)


def _pack(*parts: Tensor) -> Tensor:
    """Bytes [N, …] of tensors [N, …] side by side."""
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)


def _unpack(message: Tensor, like_TD: Tensor, choices: int) -> tuple[Tensor, Tensor, Tensor]:
    """Activations [N, D], slots [N, K] and weights [N, K] of packed bytes."""
    widths = [like_TD.shape[1] * like_TD.element_size(), 4 * choices, 4 * choices]
    x, slots, weights = (part.contiguous() for part in torch.split(message, widths, dim=1))
    return x.view(like_TD.dtype), slots.view(torch.int32), weights.view(torch.float32)
