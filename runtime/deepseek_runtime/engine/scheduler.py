"""Which tokens run in the next step: decodes first, then prompts in chunks, first come first served.

One step mixes both kinds under one budget of tokens, so that a long prompt never stops the others. When blocks run out,
the sequence that came last gives its blocks back and is computed again later; its tokens are kept, nothing is lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.sequence import FinishReason, Sequence


@dataclass(frozen=True, slots=True)
class Slot:
    """A sequence's share of one step: `length` tokens from position `start`."""

    sequence: Sequence
    start: int
    length: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the end of the sequence, so that its next token can be sampled."""
        return self.start + self.length == len(self.sequence)


class Scheduler:
    """Holds every sequence that is not finished, and forms one step after the other.

    `token_budget` bounds the tokens of a step, `max_running` the sequences that hold blocks.
    """

    def __init__(self, blocks: BlockManager, *, token_budget: int, max_running: int) -> None:
        if token_budget < max_running:
            raise ValueError(f"a step of {token_budget} tokens cannot serve {max_running} running sequences")
        self.blocks = blocks
        self.token_budget = token_budget
        self.max_running = max_running
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def check(self, sequence: Sequence) -> None:
        """Raise ValueError for a sequence that does not fit even when it has the whole cache to itself."""
        longest = len(sequence.prompt) + sequence.params.max_tokens
        if longest > self.blocks.capacity:
            raise ValueError(f"{longest} tokens never fit into a cache of {self.blocks.capacity}")

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.check(sequence)
        self.waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence at once, running or waiting, and free its blocks."""
        if sequence.finish_reason is None:
            sequence.finish_reason = FinishReason.ABORT
            self._drop(sequence)

    def schedule(self) -> list[Slot]:
        """Choose the slots of the next step and reserve their blocks. Empty only when there is no work."""
        budget = self.token_budget
        slots: list[Slot] = []
        preempted_before = self.preemptions
        for sequence in sorted(self.running, key=lambda s: s.remaining > 1):
            if budget and self._reserve(sequence, min(sequence.remaining, budget), slots):
                budget -= slots[-1].length
        if self.preemptions == preempted_before:
            self._admit(budget, slots)
        return slots

    def commit(self, slots: list[Slot], sampled: dict[int, int]) -> None:
        """Record a finished step: `sampled` maps the id of each sequence that reached its end to its new token."""
        for slot in slots:
            slot.sequence.computed = slot.start + slot.length
            if slot.samples and slot.sequence.append(sampled[slot.sequence.id]) is not None:
                self._drop(slot.sequence)

    def _admit(self, budget: int, slots: list[Slot]) -> None:
        while budget and self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            length = min(sequence.remaining, budget)
            if not self.blocks.grow(sequence, length):
                return
            self.running.append(self.waiting.popleft())
            slots.append(Slot(sequence, sequence.computed, length))
            budget -= length

    def _reserve(self, sequence: Sequence, length: int, slots: list[Slot]) -> bool:
        """Add a slot of a running sequence, preempting later ones for its blocks; False if it was preempted itself."""
        while sequence.blocks and not self.blocks.grow(sequence, sequence.computed + length):
            self._preempt(self.running[-1], slots)
        if not sequence.blocks:
            return False
        slots.append(Slot(sequence, sequence.computed, length))
        return True

    def _preempt(self, victim: Sequence, slots: list[Slot]) -> None:
        slots[:] = [slot for slot in slots if slot.sequence is not victim]
        self.running.remove(victim)
        self.blocks.release(victim)
        self.waiting.appendleft(victim)
        self.preemptions += 1

    def _drop(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.blocks.release(sequence)
