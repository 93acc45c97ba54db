"""Whatever is asked, in whatever order: nothing is lost, nothing leaks, nobody waits for ever, no token is another's.

A machine adds sequences with common beginnings, runs steps in which drafts are accepted or not, and cancels. It keeps
the beginning up to each place of the cache, on which a latent depends, so a wrong hit, an early registration or a write
to a shared block shows.
"""

from collections import Counter
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.prefix import ROOT
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.scheduler import Scheduler, Slot
from deepseek_runtime.engine.sequence import FinishReason, Sequence

STOP = 2
LONGEST = 20
"""Tokens of the longest prompt with its answer; the cache has room for little more."""
Cells = dict[tuple[int, int, int], tuple[int, ...]]
"""The tokens from a sequence's first to the one at (pool, block, offset)."""


def blocks_for(tokens: int, size: int) -> int:
    return -(-tokens // size)


def order(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.id


class SchedulerMachine(RuleBasedStateMachine):
    """One scheduler, the cache as the ranks would have written it, and every sequence that ever came."""

    @initialize(
        pools=st.sampled_from((1, 1, 2)),
        extra=st.integers(0, 2),
        size=st.integers(1, 4),
        running=st.sampled_from((6, 3, 1)),
        spare=st.integers(0, 12),
        caching=st.booleans(),
    )
    def start(self, pools: int, extra: int, size: int, running: int, spare: int, caching: bool) -> None:
        blocks = blocks_for(LONGEST, size) + extra
        managers = [BlockManager(blocks, size, prefix_caching=caching) for _ in range(pools)]
        self.subject = Scheduler(*managers, token_budget=running + spare, max_running=running)
        self.size = size
        self.cells: Cells = {}
        self.sequences: list[Sequence] = []

    @rule(
        beginning=st.sampled_from(((0,), (1, 1), (0, 1, 0, 1))),
        rest=st.lists(st.integers(0, 1), max_size=4),
        max_tokens=st.sampled_from((12, 4, 1)),
        priority=st.integers(-1, 1),
        stops=st.sampled_from((False, False, True)),
    )
    def add(self, beginning: tuple[int, ...], rest: list[int], max_tokens: int, priority: int, stops: bool) -> None:
        params = SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset({STOP} if stops else ()))
        wanted = Sequence(len(self.sequences), (*beginning, *rest), params, priority=priority)
        self.subject.add(wanted)
        self.sequences.append(wanted)

    @rule(choice=st.integers(0, 50))
    def cancel(self, choice: int) -> None:
        if active := [s for s in self.sequences if s.finish_reason is None]:
            wanted = active[choice % len(active)]
            self.subject.cancel(wanted)
            assert (wanted.finish_reason, wanted.blocks, wanted.drafts) == (FinishReason.ABORT, [], [])
            assert wanted not in self.subject.running
            assert wanted not in self.subject.waiting

    @rule(seed=st.integers(0, 2**16), count=st.integers(1, 8), cancels=st.booleans())
    def steps(self, seed: int, count: int, cancels: bool) -> None:
        random = Random(seed)
        for _ in range(count):
            self._step(random)
            self.every_block_is_where_it_should_be()
        self._step(random, cancels=cancels)

    def _step(self, random: Random, *, cancels: bool = False) -> None:
        short = [self._missing(rank) > pool.free for rank, pool in enumerate(self.subject.pools)]
        running = list(self.subject.running)
        slots = self.subject.schedule()
        assert bool(slots) == self.subject.has_work
        self._check_bounds(slots)
        self._check_order(running, short)
        self._write(slots)
        outcomes = {slot.sequence.id: self._outcome(slot, random) for slot in slots if slot.samples}
        if cancels and slots:
            self.subject.cancel(random.choice(slots).sequence)
        self._commit(slots, outcomes, random)

    @invariant()
    def every_block_is_where_it_should_be(self) -> None:
        for rank, pool in enumerate(self.subject.pools if hasattr(self, "subject") else ()):
            held = Counter(b for s in self.subject.running if s.rank == rank for b in s.blocks)
            assert [held[block] for block in range(pool.num_blocks)] == pool._references
            assert sorted([*held, *pool._idle, *pool._empty]) == list(range(pool.num_blocks))
            for block in range(pool.num_blocks):
                if block in pool._index:
                    parent, piece = pool._index._keys[block]
                    assert parent == ROOT or parent in pool._index
                    assert block in held or block in pool._idle
                    assert piece == tuple(self.cells[rank, block, offset][-1] for offset in range(self.size))
            assert pool.prefix_caching or not (pool._idle or len(pool._index) or pool.hits)

    @invariant()
    def nobody_is_lost(self) -> None:
        if hasattr(self, "subject"):
            active = {s.id for s in self.sequences if s.finish_reason is None}
            assert sorted(s.id for s in [*self.subject.running, *self.subject.waiting]) == sorted(active)
            assert not any(s.blocks for s in self.subject.waiting)
            assert all(len(s.blocks) <= blocks_for(len(s), self.size) for s in self.subject.running)

    def teardown(self) -> None:
        """Everybody finishes: one token a step is the least that the first in order makes."""
        if not hasattr(self, "subject"):
            return
        random = Random(0)
        for _ in range(sum(len(s.prompt) + s.params.max_tokens for s in self.sequences)):
            if not self.subject.has_work:
                break
            self._step(random)
            self.every_block_is_where_it_should_be()
        assert not self.subject.has_work
        assert self.subject.cache_usage == 0
        assert self.subject.preemptions == sum(s.preemptions for s in self.sequences)
        for wanted in self.sequences:
            self._check_end(wanted)

    def _missing(self, rank: int) -> int:
        """Blocks that the decodes of a pool lack for their certain tokens."""
        decoding = [s for s in self.subject.running if s.rank == rank and s.remaining == 1]
        return sum(blocks_for(len(s), self.size) - len(s.blocks) for s in decoding)

    def _check_bounds(self, slots: list[Slot]) -> None:
        assert len(self.subject.running) <= self.subject.max_running
        assert len({slot.sequence.id for slot in slots}) == len(slots)
        used = Counter[int]()
        for slot in slots:
            wanted = slot.sequence
            used[wanted.rank] += slot.length
            assert wanted in self.subject.running
            assert slot.start == wanted.computed
            assert 0 <= slot.drafts < slot.length <= len(wanted.blocks) * self.size - slot.start
            assert len(wanted.generated) + slot.drafts < wanted.params.max_tokens
        assert all(count <= self.subject.token_budget for count in used.values())
        decoding = {s.id for s in self.subject.running if s.remaining == 1}
        assert decoding <= {slot.sequence.id for slot in slots}

    def _check_order(self, before: list[Sequence], short: list[bool]) -> None:
        """Who was let in is before all that wait; who gave way was the last of a pool that was short of blocks."""
        running, waiting = self.subject.running, self.subject.waiting
        for wanted in (s for s in running if s not in before):
            assert all(order(wanted) < order(other) for other in waiting)
        for victim in (s for s in before if s in waiting):
            assert short[victim.rank]
            stayed = [s for s in before if s in running and s.rank == victim.rank]
            assert all(order(s) < order(victim) for s in stayed)

    def _write(self, slots: list[Slot]) -> None:
        """Write the slots' tokens to their own blocks, then see that each sequence's blocks hold what it is made of."""
        for slot in slots:
            for position in range(slot.start, slot.start + slot.length):
                _, block, _ = place = self._place(slot.sequence, position)
                assert self.subject.pools[slot.sequence.rank]._references[block] == 1
                self.cells[place] = tuple(slot.sequence.tokens(0, position + 1))
        for slot in slots:
            for position in range(slot.start + slot.length):
                beginning = tuple(slot.sequence.tokens(0, position + 1))
                assert self.cells[self._place(slot.sequence, position)] == beginning

    def _place(self, wanted: Sequence, position: int) -> tuple[int, int, int]:
        return wanted.rank, wanted.blocks[position // self.size], position % self.size

    def _outcome(self, slot: Slot, random: Random) -> list[int]:
        accepted = slot.sequence.drafts[: random.randint(0, slot.drafts)]
        return [*accepted, random.randint(0, STOP)]

    def _commit(self, slots: list[Slot], outcomes: dict[int, list[int]], random: Random) -> None:
        expected = {slot.sequence.id: list(slot.sequence.generated) for slot in slots}
        computed = {slot.sequence.id: slot.start + slot.length - slot.drafts for slot in slots}
        kept = self.subject.commit(slots, outcomes)
        for wanted in (slot.sequence for slot in slots):
            tokens = outcomes.get(wanted.id, [])[: kept.get(wanted.id, 0)]
            assert wanted.generated == expected[wanted.id] + tokens
            assert wanted.drafts == []
            if wanted.finish_reason is None:
                assert kept.get(wanted.id, 0) == len(outcomes.get(wanted.id, []))
                assert wanted.computed == computed[wanted.id] + max(len(tokens) - 1, 0)
                if tokens:
                    wanted.drafts = [random.randint(0, STOP) for _ in range(random.randint(0, 3))]

    def _check_end(self, wanted: Sequence) -> None:
        said, params = wanted.generated, wanted.params
        ends = [index for index, token in enumerate(said) if token in params.stop_token_ids]
        assert (wanted.blocks, wanted.drafts) == ([], [])
        assert len(said) <= params.max_tokens
        match wanted.finish_reason:
            case FinishReason.STOP:
                assert ends == [len(said) - 1]
            case FinishReason.LENGTH:
                assert (len(said), ends) == (params.max_tokens, [])
            case reason:
                assert (reason, ends) == (FinishReason.ABORT, [])


SchedulerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestWhateverComes = SchedulerMachine.TestCase
