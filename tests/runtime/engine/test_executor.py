"""Plans become batches and states become logits, also where each rank has sequences of its own."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepseek_runtime.engine.executor import ModelExecutor
from deepseek_runtime.engine.step import Outcome, SequenceOutcome, SequencePlan, StepPlan
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.rebalance import Balance


class Counting:
    """A model whose state of a token is its id; one pass of its MTP layer adds the next token's id times 100."""

    def __init__(self) -> None:
        self.batches: list[StepBatch] = []

    def forward(self, batch: StepBatch, cache: LatentCache) -> Tensor:
        self.batches.append(batch)
        return batch.token_ids.double().unsqueeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def draft_hidden(self, hidden: Tensor, next_token_ids: Tensor, batch: StepBatch, cache: LatentCache) -> Tensor:
        self.batches.append(batch)
        return hidden + 100 * next_token_ids.unsqueeze(1)

    def rebalance(self) -> Balance:
        return Balance(1.0, 1.0, 0)


@dataclass
class Wire:
    """A rank of two; rank 1 leaves its rows for rank 0, which therefore must run after it."""

    rank: int
    left: list[Tensor]
    world_size: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        assert len(rows) == counts[self.rank]
        if self.rank:
            self.left.append(rows)
            return rows
        return torch.cat((rows, self.left.pop(0)))


CACHE = LatentCache(torch.zeros(0), 4)
PLAN = StepPlan(
    sequences=(
        SequencePlan(8, (11, 12, 13), (0, 1, 2), 3, rank=1),
        SequencePlan(0, (21, 22, 23, 24), (3,), 0, rank=0),
        SequencePlan(5, (31,), (0, 1), 1, rank=0),
        SequencePlan(2, (41, 42), (4, 5), 1, rank=1),
    )
)
OUTCOME = Outcome(
    (SequenceOutcome(2, 1, 2), SequenceOutcome(4, 2, 0), SequenceOutcome(1, 3, 1), SequenceOutcome(2, 4, 2))
)
LOGITS = [11, 12, 13, 31, 42]
DRAFTS = [112, 331, 442]
EXTENDED = [112 + 700, 442 + 900]


def values(logits: Tensor) -> list[int]:
    return logits.flatten().int().tolist()


def passes(executors: Iterable[ModelExecutor]) -> list[list[int]]:
    """What a step and two passes of drafting give on the last of the executors."""
    results: list[list[int]] = []
    for executor in executors:
        results = [
            values(executor.run(PLAN)),
            values(executor.draft(OUTCOME)),
            values(executor.extend([7, 8, 9])),
        ]
    return results


def test_a_rank_with_everything_drafts_from_the_tokens_that_stay() -> None:
    model = Counting()
    executor = ModelExecutor(model, CACHE, Wire(0, []))
    assert passes([executor]) == [LOGITS, DRAFTS, EXTENDED]
    step, first, second = model.batches
    assert step.query_lens == [3, 4, 1, 2]
    assert first.query_lens == [2, 4, 1, 2]
    assert first.token_ids.tolist() == [12, 1, 22, 23, 24, 2, 3, 42, 4]
    assert first.positions.tolist() == [8, 9, 0, 1, 2, 3, 5, 2, 3]
    assert (second.positions.tolist(), second.token_ids.tolist()) == ([10, 4], [7, 9])
    assert second.block_tables == [[0, 1, 2], [4, 5]]


def test_ranks_with_sequences_of_their_own_bring_their_rows_back_into_the_plans_order() -> None:
    left: list[Tensor] = []
    models = [Counting(), Counting()]
    ranks = [ModelExecutor(models[rank], CACHE, Wire(rank, left), data_parallel=True) for rank in (0, 1)]
    assert passes(reversed(ranks)) == [LOGITS, DRAFTS, EXTENDED]
    assert [batch.query_lens for batch in models[0].batches] == [[4, 1], [4, 1], []]
    assert [batch.query_lens for batch in models[1].batches] == [[3, 2], [2, 2], [1, 1]]
