"""Every rank's half of a step: plan → logits; on rank 0 also → tokens.

Rank 0 leads: it broadcasts each plan before it runs it. The others follow: they block in the broadcast, without using
the processor, until the next plan or sign of life comes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Protocol

from torch import Tensor

from deepseek_runtime.engine.sampler import sample
from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.engine.scheduler import Slot
from deepseek_runtime.engine.step import Operation, SequencePlan, StepPlan


class Channel(Protocol):
    """What the runner needs of a `dist.Group`."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def broadcast_ints(self, values: list[int] | None) -> list[int]:
        """Rank 0 gives the list, every rank gets it."""
        ...


class Executor(Protocol):
    """Runs this rank's part of the model."""

    def run(self, plan: StepPlan) -> Tensor:
        """Write the plan's tokens to the cache; on rank 0, logits [N, V] float32 of the positions it wants."""
        ...


class Runner:
    """Runs steps on this rank. `vocab_size` is the tokenizer's: ids beyond it are padding and never sampled."""

    def __init__(self, executor: Executor, channel: Channel, *, vocab_size: int) -> None:
        self._executor = executor
        self._channel = channel
        self._vocab_size = vocab_size

    def lead(self, slots: Rows[Slot]) -> dict[int, Sampled]:
        """Run one step on every rank; the next token of each sequence that reached its end, by sequence id."""
        plan = StepPlan(sequences=tuple(map(_plan_slot, slots)))
        self._send(plan)
        logits = self._executor.run(plan)
        sequences = [slot.sequence for slot in slots if slot.samples]
        if not sequences:
            return {}
        tokens = sample(logits[:, : self._vocab_size], sequences)
        return {sequence.id: sampled for sequence, sampled in zip(sequences, tokens, strict=True)}

    def announce(self, operation: Operation) -> None:
        """Tell the other ranks something that needs no computation."""
        self._send(StepPlan(operation))

    def follow(self, on_message: Callable[[Operation], None]) -> None:
        """Run what rank 0 sends until it says stop. `on_message` is called after each message was obeyed."""
        operation = Operation.STEP
        while operation is not Operation.STOP:
            plan = StepPlan.decode(self._channel.broadcast_ints(None))
            operation = plan.operation
            if plan.sequences:
                self._executor.run(plan)
            on_message(operation)

    def _send(self, plan: StepPlan) -> None:
        if self._channel.world_size > 1:
            self._channel.broadcast_ints(plan.encode())


def _plan_slot(slot: Slot) -> SequencePlan:
    stop = slot.start + slot.length
    tokens = slot.sequence.tokens(slot.start, stop)
    return SequencePlan(slot.start, tuple(tokens), tuple(slot.sequence.blocks), int(slot.samples))
