"""What runs in a step: order, budget, preemption, cancellation; nothing is lost and no block leaks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.scheduler import Scheduler, Slot
from deepseek_runtime.engine.sequence import FinishReason, Sequence


def sequence(id_: int, prompt: int, max_tokens: int = 4) -> Sequence:
    return Sequence(id_, tuple(range(prompt)), SamplingParams(max_tokens=max_tokens))


def scheduler(blocks: int = 16, size: int = 4, budget: int = 8, running: int = 4) -> Scheduler:
    return Scheduler(BlockManager(blocks, size), token_budget=budget, max_running=running)


def step(subject: Scheduler) -> list[tuple[int, int, int]]:
    """Run one step in which every sampled token is 7; what ran, as (sequence, start, length)."""
    slots = subject.schedule()
    subject.commit(slots, {slot.sequence.id: [7] for slot in slots if slot.samples})
    return [(slot.sequence.id, slot.start, slot.length) for slot in slots]


def test_a_long_prompt_is_read_in_chunks_of_the_budget() -> None:
    subject = scheduler(budget=8)
    subject.add(sequence(0, prompt=20, max_tokens=1))
    assert [step(subject), step(subject), step(subject)] == [[(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4)]]
    assert not subject.has_work


def test_decoding_goes_on_while_another_prompt_is_read() -> None:
    subject = scheduler(budget=8)
    subject.add(sequence(0, prompt=3))
    step(subject)
    subject.add(sequence(1, prompt=12))
    assert step(subject) == [(0, 3, 1), (1, 0, 7)]
    assert step(subject) == [(0, 4, 1), (1, 7, 5)]


def test_requests_start_in_the_order_they_came() -> None:
    subject = scheduler(budget=8, running=2)
    for id_ in range(4):
        subject.add(sequence(id_, prompt=2, max_tokens=1))
    assert [run[0] for run in step(subject) + step(subject)] == [0, 1, 2, 3]


def test_the_last_one_gives_way_when_blocks_run_out_and_continues_with_its_tokens() -> None:
    subject = scheduler(blocks=4, size=4, budget=16, running=2)
    first, second = sequence(0, prompt=7, max_tokens=9), sequence(1, prompt=7, max_tokens=9)
    subject.add(first)
    subject.add(second)
    while not subject.preemptions:
        step(subject)
    assert list(subject.waiting) == [second]
    assert second.generated
    while subject.has_work:
        step(subject)
    assert (len(first.generated), len(second.generated)) == (9, 9)


def test_a_cancelled_sequence_frees_its_blocks_and_its_place_at_once() -> None:
    subject = scheduler(running=1)
    running, waiting = sequence(0, prompt=4, max_tokens=9), sequence(1, prompt=4)
    subject.add(running)
    subject.add(waiting)
    step(subject)
    subject.cancel(running)
    assert running.finish_reason is FinishReason.ABORT
    assert subject.pools[0].free == subject.pools[0].num_blocks
    assert step(subject) == [(1, 0, 4)]


def test_what_can_never_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="70 tokens never fit into a cache of 64"):
        scheduler(blocks=16, size=4).add(sequence(0, prompt=60, max_tokens=10))


def test_a_stop_token_ends_a_sequence_but_not_before_its_minimum() -> None:
    subject = scheduler()
    params = SamplingParams(max_tokens=9, stop_token_ids=frozenset({7}), min_tokens=2)
    wanted = Sequence(0, (1,), params)
    subject.add(wanted)
    while subject.has_work:
        step(subject)
    assert wanted.generated == [7, 7, 7]
    assert wanted.finish_reason is FinishReason.STOP


Requests = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(requests=Requests, blocks=st.integers(11, 20), budget=st.integers(3, 20), running=st.integers(1, 3))
def test_whatever_comes_every_sequence_ends_and_every_block_comes_back(
    requests: list[tuple[int, int, int]], blocks: int, budget: int, running: int
) -> None:
    subject = scheduler(blocks=blocks, size=4, budget=budget, running=running)
    sequences = [sequence(i, prompt, max_tokens) for i, (prompt, max_tokens, _) in enumerate(requests)]
    for wanted in sequences:
        subject.add(wanted)
    for count in range(2000):
        if not subject.has_work:
            break
        for wanted, (_, _, cancel_at) in zip(sequences, requests, strict=True):
            if cancel_at == count + 1:
                subject.cancel(wanted)
        slots = subject.schedule()
        _check_step(subject, slots)
        subject.commit(slots, {slot.sequence.id: [7] for slot in slots if slot.samples})
    assert not subject.has_work
    assert subject.pools[0].free == blocks
    for wanted in sequences:
        assert wanted.finish_reason is FinishReason.ABORT or len(wanted.generated) == wanted.params.max_tokens


def _check_step(subject: Scheduler, slots: list[Slot]) -> None:
    assert slots or not subject.has_work
    assert sum(slot.length for slot in slots) <= subject.token_budget
    assert len(subject.running) <= subject.max_running
    held = {block for wanted in subject.running for block in wanted.blocks}
    assert len(held) + subject.pools[0].free == subject.pools[0].num_blocks
    for slot in slots:
        assert slot.start == slot.sequence.computed
        assert slot.start + slot.length <= len(slot.sequence.blocks) * subject.pools[0].block_size
