"""Which tokens run in the next step: decodes first, then prompts in chunks, in the order of priority and arrival.

One step mixes both kinds under one budget of tokens, so that a long prompt never stops the others. When blocks run out,
the sequence that is last in order gives its blocks back and is computed again later, from what the prefix cache still
has of it; its tokens are kept, nothing is lost.

With data-parallel attention each rank has a pool of blocks for sequences of its own; otherwise there is a single pool.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.sequence import FinishReason, Sequence


@dataclass(frozen=True, slots=True)
class Slot:
    """A sequence's share of a step: `length` tokens from position `start`, the last `drafts` of them to be verified."""

    sequence: Sequence
    start: int
    length: int
    drafts: int = 0

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last certain token, so that the next can be sampled. Ask before `commit`."""
        return self.start + self.length - self.drafts == len(self.sequence)


class Scheduler:
    """Holds every sequence that is not finished, and forms one step after the other.

    `token_budget` bounds the tokens of a step in each pool, `max_running` the sequences that hold blocks, of all pools.
    Sequences are served by priority, lower numbers first, and by arrival within a priority. A newcomer of a better
    priority is the next to be admitted but takes nothing from those that run; only when one of these needs a block and
    none is free, the last in order of its pool gives way.
    """

    def __init__(self, *pools: BlockManager, token_budget: int, max_running: int) -> None:
        if not pools:
            raise ValueError("a scheduler needs at least one pool of blocks")
        if token_budget < max_running:
            raise ValueError(f"a step of {token_budget} tokens cannot serve {max_running} running sequences")
        self.pools = pools
        self.token_budget = token_budget
        self.max_running = max_running
        self.running: list[Sequence] = []  # both lists are kept in order, the next one to be served first
        self.waiting: list[Sequence] = []
        self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def cache_usage(self) -> float:
        """Share of all pools' blocks held by sequences, 0 to 1."""
        return 1 - sum(pool.free for pool in self.pools) / sum(pool.num_blocks for pool in self.pools)

    def check(self, sequence: Sequence) -> None:
        """Raise ValueError for a sequence that does not fit even when it has a whole pool to itself."""
        longest = len(sequence.prompt) + sequence.params.max_tokens
        capacity = min(pool.capacity for pool in self.pools)
        if longest > capacity:
            raise ValueError(f"{longest} tokens never fit into a cache of {capacity}")

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.check(sequence)
        insort(self.waiting, sequence, key=_order)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence at once, running or waiting, and free its blocks."""
        if sequence.finish_reason is None:
            sequence.finish_reason = FinishReason.ABORT
            self._drop(sequence)

    def schedule(self) -> list[Slot]:
        """Choose the slots of the next step and reserve their blocks. Empty only when there is no work."""
        slots: list[Slot] = []
        budgets: list[int] = []
        for rank in range(len(self.pools)):
            own, budget = self._continue(rank)
            slots += own
            budgets.append(budget)
        self._admit(budgets, slots)
        return slots

    def commit(self, slots: Rows[Slot], outcomes: Mapping[int, Rows[int]]) -> dict[int, int]:
        """Record a finished step; for each sequence that sampled, by its id, how many tokens of its outcome it kept.

        `outcomes` maps the id of each such sequence to the tokens that became certain: the accepted ones of its drafts,
        then the token sampled behind them. A sequence that finishes inside keeps no more than up to there. Sequences
        cancelled since `schedule` are left out.
        """
        kept: dict[int, int] = {}
        for slot in slots:
            sequence = slot.sequence
            if sequence.finish_reason is None:
                certain = slot.start + slot.length - slot.drafts
                if slot.samples:
                    tokens = outcomes[sequence.id]
                    kept[sequence.id] = sequence.extend(tokens)
                    certain = min(certain + len(tokens) - 1, len(sequence))
                self._advance(slot, certain)
        return kept

    def _continue(self, rank: int) -> tuple[list[Slot], int]:
        """Slots of the running sequences of a pool, and the tokens left for new ones."""
        own = [sequence for sequence in self.running if sequence.rank == rank]
        decoding = self._reserve(rank, [sequence for sequence in own if sequence.remaining == 1])
        reading = [sequence for sequence in own if sequence.remaining > 1 and sequence.blocks]
        rest = self.token_budget - len(decoding)
        prompts = reading or (self.waiting and len(self.running) < self.max_running)
        slots = self._decode(rank, decoding, rest // 2 if prompts else rest)
        rest -= sum(slot.drafts for slot in slots)
        for sequence in reading:
            if length := min(sequence.remaining, rest):
                slots.append(Slot(sequence, sequence.computed, length))
                rest -= length
        return slots, rest

    def _reserve(self, rank: int, decoding: list[Sequence]) -> list[Sequence]:
        """Have a block for the next token of each sequence, in order; those that were not preempted for it."""
        pool = self.pools[rank]
        for sequence in decoding:
            while sequence.blocks and not pool.grow(sequence, len(sequence)):
                self._preempt(next(victim for victim in reversed(self.running) if victim.rank == rank))
        return [sequence for sequence in decoding if sequence.blocks]

    def _decode(self, rank: int, decoding: list[Sequence], spare: int) -> list[Slot]:
        """One slot each, with as many drafts as fit into `spare` tokens and into blocks that are free anyway."""
        pool = self.pools[rank]
        slots: list[Slot] = []
        for sequence in decoding:
            drafts = min(len(sequence.drafts), spare, sequence.params.max_tokens - len(sequence.generated) - 1)
            while drafts and not pool.grow(sequence, len(sequence) + drafts):
                drafts -= 1
            slots.append(Slot(sequence, sequence.computed, 1 + drafts, drafts))
            spare -= drafts
        return slots

    def _admit(self, budgets: list[int], slots: list[Slot]) -> None:
        """Let waiting sequences in, in order, while there are places, tokens and blocks for all they have so far."""
        while self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            if not self._place(sequence, budgets):
                return
            self.waiting.pop(0)
            insort(self.running, sequence, key=_order)
            length = min(sequence.remaining, budgets[sequence.rank])
            slots.append(Slot(sequence, sequence.computed, length))
            budgets[sequence.rank] -= length

    def _place(self, sequence: Sequence, budgets: list[int]) -> bool:
        """Admit a sequence to the pool with most blocks for it, cached ones counted like free ones; else False."""
        candidates = [
            (pool.free + len(prefix), -rank, prefix)
            for rank, pool in enumerate(self.pools)
            if budgets[rank] and pool.free and pool.fits(sequence, prefix := pool.match(sequence))
        ]
        if not candidates:
            return False
        _, negative, prefix = max(candidates)
        sequence.rank = -negative
        self.pools[sequence.rank].admit(sequence, prefix)
        return True

    def _advance(self, slot: Slot, certain: int) -> None:
        """Let a sequence have its first `certain` tokens computed, and keep or free its blocks accordingly."""
        sequence, pool = slot.sequence, self.pools[slot.sequence.rank]
        sequence.computed = certain
        sequence.drafts.clear()
        pool.register(sequence, slot.start)
        if sequence.finish_reason is not None:
            self._drop(sequence)
        elif slot.drafts:
            pool.shrink(sequence, len(sequence))

    def _preempt(self, victim: Sequence) -> None:
        self._drop(victim)
        victim.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, victim, key=_order)

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out of wherever it is, with all that it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.drafts.clear()
        self.pools[sequence.rank].release(sequence)


def _order(sequence: Sequence) -> tuple[int, int]:
    """Sorts by priority, then by arrival: ids are given in the order of arrival."""
    return sequence.priority, sequence.id
