"""The step plan that rank 0 broadcasts: a message of plain integers, the same for every rank.

Layout: [operation, sequences, then for each: start, tokens, logits, blocks, token ids…, block ids…].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice


class Operation(IntEnum):
    """What the ranks do with a message."""

    STEP = 0
    """Run the model on the plan. Without sequences it is the sign of life of an idle group, sent every few seconds."""
    DRAIN = 1
    """Nothing to compute: the group is shutting down in good order, a SIGTERM is expected from now on."""
    STOP = 2
    """Leave the loop: no further message will come."""


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """One sequence's part of a step.

    `token_ids` go to positions `start`, `start` + 1, …; `logits` is how many of the last ones need logits: 0 for a
    chunk inside a prompt, 1 for the end of a sequence, more where drafted tokens are verified.
    """

    start: int
    token_ids: tuple[int, ...]
    block_table: tuple[int, ...]
    logits: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything a rank must know to run one step."""

    operation: Operation = Operation.STEP
    sequences: tuple[SequencePlan, ...] = ()

    def encode(self) -> list[int]:
        """The plan as a flat list of integers."""
        message = [int(self.operation), len(self.sequences)]
        for part in self.sequences:
            message += (part.start, len(part.token_ids), part.logits, len(part.block_table))
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
    start, tokens, logits, blocks = islice(values, 4)
    return SequencePlan(start, tuple(islice(values, tokens)), tuple(islice(values, blocks)), logits)
