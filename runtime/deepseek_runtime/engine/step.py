"""What rank 0 broadcasts: the plan of a step, and with speculation its outcome. Plain integers, alike for every rank.

Layout of a plan: [operation, sequences, then for each: start, tokens, logits, rank, blocks, token ids…, block ids…].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, islice


class Operation(IntEnum):
    """What the ranks do with a message."""

    STEP = 0
    """Run the model on the plan. Without sequences it is the sign of life of an idle group, sent every few seconds."""
    DRAIN = 1
    """Nothing to compute: the group is shutting down in good order, a SIGTERM is expected from now on."""
    STOP = 2
    """Leave the loop: no further message will come."""
    REBALANCE = 3
    """Move experts between ranks, where their work is uneven, before the next step."""


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """One sequence's part of a step.

    `token_ids` go to positions `start`, `start` + 1, …; `logits` is how many of the last ones need logits: 0 for a
    chunk inside a prompt, 1 for the end of a sequence, more where drafted tokens are verified. `rank` is the sequence's
    home where each rank attends to sequences of its own.
    """

    start: int
    token_ids: tuple[int, ...]
    block_table: tuple[int, ...]
    logits: int
    rank: int = 0

    @property
    def stop(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything a rank must know to run one step."""

    operation: Operation = Operation.STEP
    sequences: tuple[SequencePlan, ...] = ()

    def encode(self) -> list[int]:
        """The plan as a flat list of integers."""
        message = [int(self.operation), len(self.sequences)]
        for part in self.sequences:
            message += (part.start, len(part.token_ids), part.logits, part.rank, len(part.block_table))
            message += part.token_ids
            message += part.block_table
        return message

    @classmethod
    def decode(cls, message: list[int]) -> StepPlan:
        """The plan behind a list made by `encode`."""
        values = iter(message)
        operation, count = Operation(next(values)), next(values)
        return cls(operation, tuple(_decode_sequence(values) for _ in range(count)))


def _decode_sequence(values: Iterator[int]) -> SequencePlan:
    start, tokens, logits, rank, blocks = islice(values, 5)
    return SequencePlan(start, tuple(islice(values, tokens)), tuple(islice(values, blocks)), logits, rank)


@dataclass(frozen=True, slots=True)
class SequenceOutcome:
    """What a step made certain of one sequence of its plan.

    `kept` of its tokens stay, which is all but rejected drafts; `next_token` is the one behind these; as many as
    `drafts` are to be drafted behind that one.
    """

    kept: int
    next_token: int
    drafts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One for each sequence of the plan, in its order."""

    sequences: tuple[SequenceOutcome, ...]

    @property
    def depth(self) -> int:
        """The most tokens that any sequence drafts."""
        return max((part.drafts for part in self.sequences), default=0)

    def encode(self) -> list[int]:
        """The outcome as a flat list of integers."""
        return list(chain.from_iterable((part.kept, part.next_token, part.drafts) for part in self.sequences))

    @classmethod
    def decode(cls, message: list[int]) -> Outcome:
        """The outcome behind a list made by `encode`."""
        values = iter(message)
        return cls(tuple(SequenceOutcome(*part) for part in zip(values, values, values, strict=True)))
