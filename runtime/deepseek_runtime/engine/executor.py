"""The real model behind the runner's `Executor`: a plan becomes a packed batch, hidden states become logits.

With data-parallel attention a rank packs only the sequences whose home it is, maybe none, and the states whose logits
are wanted travel to rank 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from itertools import accumulate, chain, compress
from typing import Protocol

import torch
from torch import Tensor

from deepseek_runtime.engine.step import Outcome, SequencePlan, StepPlan
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.rebalance import Balance

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What is needed of a model."""

    def forward(self, batch: StepBatch, cache: LatentCache) -> Tensor:
        """Hidden states [T, D] of the batch's T tokens, whose latents are written to the cache."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] float32 of hidden states [N, D]."""
        ...

    def draft_hidden(self, hidden: Tensor, next_token_ids: Tensor, batch: StepBatch, cache: LatentCache) -> Tensor:
        """States [T, D] for the token after next, from the batch's hidden states and its tokens shifted by one."""
        ...

    def rebalance(self) -> Balance:
        """Even out the ranks' work on experts; all ranks call it."""
        ...


Forward = Callable[[StepBatch, LatentCache], Tensor]
"""What `Model.forward` is."""


class Exchange(Protocol):
    """What the executor needs of a `dist.Group`."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """All ranks' rows on rank 0, in the order of ranks; `counts` says how many each rank has."""
        ...


@dataclass(frozen=True, slots=True)
class _Tail:
    """A sequence that drafts: its part of the pass just run, and how many more drafts it is to get from it."""

    part: SequencePlan
    left: int


class ModelExecutor:
    """Runs plans on this rank's part of the model and its cache. Only rank 0 computes logits.

    `data_parallel` says that each rank attends to the sequences of its own instead of to its heads of all of them.
    `forward` takes the place of the model's own, as `DecodeGraphs` has one; its result counts until it is called again.
    """

    def __init__(
        self,
        model: Model,
        cache: LatentCache,
        group: Exchange,
        *,
        data_parallel: bool = False,
        forward: Forward | None = None,
    ) -> None:
        self._model = model
        self._forward = forward or model.forward
        self._cache = cache
        self._group = group
        self._data_parallel = data_parallel and group.world_size > 1
        self._plan = StepPlan()
        self._hidden = torch.empty(0)
        self._tails: list[_Tail] = []

    @property
    def block_size(self) -> int:
        return self._cache.block_size

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Logits [N, V] float32 of the positions that the plan wants, in the order of its sequences."""
        self._plan = plan
        own = self._own(plan.sequences)
        self._hidden = self._forward(pack(own, self._group.device), self._cache)
        return self._logits(_take(self._hidden, last_rows(own)), plan.sequences)

    @torch.inference_mode()
    def draft(self, outcome: Outcome) -> Tensor:
        """Run the MTP layer over what stays of the last plan; logits [N, V] for those that draft, in its order."""
        pairs = list(zip(self._plan.sequences, outcome.sequences, strict=True))
        shifted = [
            replace(
                part,
                token_ids=(*part.token_ids[1 : result.kept], result.next_token),
                logits=int(result.drafts > 0),
            )
            for part, result in pairs
        ]
        starts = accumulate((len(part.token_ids) for part in self._own(self._plan.sequences)), initial=0)
        kept = [len(part.token_ids) for part in self._own(shifted)]
        rows = [start + i for start, count in zip(starts, kept, strict=False) for i in range(count)]
        return self._run_mtp(shifted, [result.drafts for _, result in pairs], _take(self._hidden, rows))

    @torch.inference_mode()
    def extend(self, tokens: Rows[int]) -> Tensor:
        """Run the MTP layer over the drafts `tokens` of the sequences that drafted last; logits of those that go on."""
        going = [(tail, token) for tail, token in zip(self._tails, tokens, strict=True) if tail.left]
        parts = [
            SequencePlan(tail.part.stop, (token,), tail.part.block_table, 1, tail.part.rank) for tail, token in going
        ]
        own = [bool(tail.left) for tail in self._tails if self._is_own(tail.part)]
        rows = list(compress(range(len(own)), own))
        return self._run_mtp(parts, [tail.left for tail, _ in going], _take(self._hidden, rows))

    def rebalance(self) -> float:
        """Let ranks whose experts are chosen more often than others' give some away; the busiest's work until now."""
        balance = self._model.rebalance()
        if balance.moved and self._group.rank == 0:
            text = "moved %d experts: the busiest rank did %.2f times the mean, now %.2f"
            logger.info(text, balance.moved, balance.before, balance.after)
        return balance.before

    def _run_mtp(self, parts: list[SequencePlan], drafts: list[int], hidden: Tensor) -> Tensor:
        """One pass of the MTP layer; what it makes of the last token of each sequence stays for the next pass."""
        own = self._own(parts)
        batch = pack(own, self._group.device)
        states = self._model.draft_hidden(hidden, batch.token_ids, batch, self._cache)
        self._hidden = _take(states, last_rows(own))
        self._tails = [_Tail(part, count - 1) for part, count in zip(parts, drafts, strict=True) if count]
        return self._logits(self._hidden, parts)

    def _is_own(self, part: SequencePlan) -> bool:
        return not self._data_parallel or part.rank == self._group.rank

    def _own(self, parts: Iterable[SequencePlan]) -> list[SequencePlan]:
        """The sequences that this rank attends to."""
        return [part for part in parts if self._is_own(part)]

    def _logits(self, own: Tensor, parts: Rows[SequencePlan]) -> Tensor:
        """Logits of all ranks' rows in the order of `parts`, from this rank's own; not for the other ranks."""
        if self._data_parallel:
            homes = [part.rank for part in parts for _ in range(part.logits)]
            rows = self._group.gather_rows(own, [homes.count(rank) for rank in range(self._group.world_size)])
            order = sorted(range(len(homes)), key=homes.__getitem__)
            own = rows[torch.tensor(order).argsort().to(rows.device)] if self._group.rank == 0 else rows
        return self._model.logits(own) if self._group.rank == 0 else own


def pack(parts: Rows[SequencePlan], device: torch.device) -> StepBatch:
    """The sequences' tokens one sequence after another."""
    token_ids = list(chain.from_iterable(part.token_ids for part in parts))
    positions = list(chain.from_iterable(range(part.start, part.stop) for part in parts))
    return StepBatch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        query_lens=[len(part.token_ids) for part in parts],
        context_lens=[part.start for part in parts],
        block_tables=[list(part.block_table) for part in parts],
    )


def last_rows(parts: Rows[SequencePlan]) -> list[int]:
    """Rows of the packed batch whose logits are wanted."""
    ends = accumulate(len(part.token_ids) for part in parts)
    return list(chain.from_iterable(range(end - part.logits, end) for end, part in zip(ends, parts, strict=True)))


def _take(rows: Tensor, indices: list[int]) -> Tensor:
    """The given rows, in ascending order; without a copy where that is all of them."""
    return rows if len(indices) == len(rows) else rows[indices]
