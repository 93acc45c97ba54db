"""What runs in a step: order, budget, drafts, pools, preemption, cancellation."""

import pytest

from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.scheduler import Scheduler
from deepseek_runtime.engine.sequence import FinishReason, Sequence


def sequence(id_: int, prompt: int, max_tokens: int = 4, priority: int = 0) -> Sequence:
    """A sequence whose prompt begins like no other's."""
    tokens = (1000 + id_, *range(prompt - 1))
    return Sequence(id_, tokens, SamplingParams(max_tokens=max_tokens), priority=priority)


def scheduler(blocks: int = 16, size: int = 4, budget: int = 8, running: int = 4, pools: int = 1) -> Scheduler:
    return Scheduler(*(BlockManager(blocks, size) for _ in range(pools)), token_budget=budget, max_running=running)


def step(subject: Scheduler) -> list[tuple[int, int, int]]:
    """Run one step in which every sampled token is 7; what ran, as (sequence, start, length)."""
    slots = subject.schedule()
    subject.commit(slots, {slot.sequence.id: [7] for slot in slots if slot.samples})
    return [(slot.sequence.id, slot.start, slot.length) for slot in slots]


def decoding(subject: Scheduler, wanted: Sequence, drafts: list[int]) -> Sequence:
    """The sequence, added, its prompt read, with drafts behind its first token."""
    subject.add(wanted)
    while wanted.remaining > 1 or not wanted.generated:
        step(subject)
    wanted.drafts = drafts
    return wanted


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


def test_a_lower_priority_number_starts_earlier() -> None:
    subject = scheduler(budget=8, running=2)
    for id_, priority in enumerate((0, 5, -1, 0, -1)):
        subject.add(sequence(id_, prompt=2, max_tokens=1, priority=priority))
    assert [run[0] for run in step(subject) + step(subject) + step(subject)] == [2, 4, 0, 3, 1]


def test_an_urgent_newcomer_takes_nothing_from_those_that_run() -> None:
    subject = scheduler(budget=8, running=1)
    subject.add(sequence(0, prompt=2, max_tokens=3))
    step(subject)
    subject.add(sequence(1, prompt=2, max_tokens=1, priority=-9))
    assert [step(subject), step(subject), step(subject)] == [[(0, 2, 1)], [(0, 3, 1)], [(1, 0, 2)]]
    assert subject.preemptions == 0


def test_the_last_one_gives_way_when_blocks_run_out_and_continues_with_its_tokens() -> None:
    subject = scheduler(blocks=4, size=4, budget=16, running=2)
    first, second = sequence(0, prompt=7, max_tokens=9), sequence(1, prompt=7, max_tokens=9)
    subject.add(first)
    subject.add(second)
    while not subject.preemptions:
        step(subject)
    assert subject.waiting == [second]
    assert second.generated
    while subject.has_work:
        step(subject)
    assert (len(first.generated), len(second.generated)) == (9, 9)


def test_the_least_urgent_one_gives_way_even_if_it_came_first() -> None:
    subject = scheduler(blocks=4, size=4, budget=16, running=2)
    early, urgent = sequence(0, prompt=7, max_tokens=9, priority=1), sequence(1, prompt=7, max_tokens=9)
    subject.add(early)
    subject.add(urgent)
    while not subject.preemptions:
        step(subject)
    assert subject.waiting == [early]


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    subject = scheduler(blocks=8, size=4, budget=16, running=2)
    first, second = sequence(0, prompt=12, max_tokens=8), sequence(1, prompt=12, max_tokens=8)
    subject.add(first)
    subject.add(second)
    while not subject.preemptions:
        step(subject)
    subject.cancel(first)
    assert step(subject) == [(1, 12, 4)]
    assert (second.cached, subject.pools[0].hits) == (0, 0)


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


def test_a_sequence_cancelled_while_its_step_runs_is_left_out_of_the_commit() -> None:
    subject = scheduler()
    kept, cancelled = sequence(0, prompt=2), sequence(1, prompt=2)
    subject.add(kept)
    subject.add(cancelled)
    slots = subject.schedule()
    subject.cancel(cancelled)
    assert subject.commit(slots, {0: [7], 1: [7]}) == {0: 1}
    assert (cancelled.generated, subject.running) == ([], [kept])


def test_what_can_never_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="70 tokens never fit into a cache of 64"):
        scheduler(blocks=16, size=4, pools=2).add(sequence(0, prompt=60, max_tokens=10))


def test_a_budget_below_one_token_for_each_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="a step of 3 tokens cannot serve 4 running sequences"):
        scheduler(budget=3, running=4)


def test_a_stop_token_ends_a_sequence_but_not_before_its_minimum() -> None:
    subject = scheduler()
    params = SamplingParams(max_tokens=9, stop_token_ids=frozenset({7}), min_tokens=2)
    wanted = Sequence(0, (1,), params)
    subject.add(wanted)
    while subject.has_work:
        step(subject)
    assert wanted.generated == [7, 7, 7]
    assert wanted.finish_reason is FinishReason.STOP


def test_a_decode_verifies_its_drafts_and_goes_on_behind_the_accepted_ones() -> None:
    subject = scheduler()
    wanted = decoding(subject, sequence(0, prompt=3, max_tokens=9), drafts=[8, 9, 10])
    [slot] = subject.schedule()
    assert (slot.start, slot.length, slot.drafts, slot.samples) == (3, 4, 3, True)
    assert wanted.tokens(3, 7) == [7, 8, 9, 10]
    assert subject.commit([slot], {0: [8, 9, 4]}) == {0: 3}
    assert (wanted.generated, wanted.computed, wanted.drafts) == ([7, 8, 9, 4], 6, [])
    assert step(subject) == [(0, 6, 1)]


def test_nothing_is_kept_behind_an_accepted_stop_token() -> None:
    subject = scheduler(size=1)
    params = SamplingParams(max_tokens=9, stop_token_ids=frozenset({2}))
    wanted = decoding(subject, Sequence(0, (1, 1), params), drafts=[8, 2, 9])
    slots = subject.schedule()
    assert subject.commit(slots, {0: [8, 2, 9, 4]}) == {0: 2}
    assert (wanted.generated, wanted.finish_reason) == ([7, 8, 2], FinishReason.STOP)
    assert subject.pools[0].free == subject.pools[0].num_blocks
    assert len(subject.pools[0]._index) == len(wanted)


def test_no_more_drafts_run_than_tokens_are_allowed() -> None:
    subject = scheduler()
    decoding(subject, sequence(0, prompt=3, max_tokens=3), drafts=[8, 9, 10])
    [slot] = subject.schedule()
    assert (slot.length, slot.drafts) == (2, 1)
    assert subject.commit([slot], {0: [8, 7]}) == {0: 2}
    assert not subject.has_work


def test_drafts_share_what_the_decodes_leave_of_the_budget_with_prompts() -> None:
    subject = scheduler(budget=8, running=3)
    for id_ in range(2):
        decoding(subject, sequence(id_, prompt=1, max_tokens=9), drafts=[])
    for wanted in subject.running:
        wanted.drafts = [8, 8, 8]
    subject.add(sequence(2, prompt=9))
    slots = subject.schedule()
    assert [(slot.sequence.id, slot.length, slot.drafts) for slot in slots] == [(0, 4, 3), (1, 1, 0), (2, 3, 0)]


def test_drafts_take_no_block_that_another_needs_for_a_certain_token() -> None:
    subject = scheduler(blocks=3, size=2, budget=16, running=2)
    first = decoding(subject, sequence(0, prompt=1, max_tokens=5), drafts=[])
    second = decoding(subject, sequence(1, prompt=1, max_tokens=3), drafts=[])
    first.drafts, second.drafts = [8, 8, 8], []
    assert (len(first), len(second)) == (3, 2)
    slots = subject.schedule()
    assert [(slot.sequence.id, slot.drafts) for slot in slots] == [(0, 1), (1, 0)]
    assert subject.preemptions == 0


def test_blocks_that_only_rejected_drafts_needed_are_free_after_the_commit() -> None:
    subject = scheduler(blocks=4, size=2)
    decoding(subject, sequence(0, prompt=1, max_tokens=7), drafts=[8, 8, 8])
    slots = subject.schedule()
    assert subject.pools[0].free == 1
    subject.commit(slots, {0: [9]})
    assert subject.pools[0].free == 2


def test_preemption_forgets_drafts() -> None:
    subject = scheduler(blocks=4, size=4, budget=16, running=2)
    subject.add(sequence(0, prompt=7, max_tokens=9))
    second = decoding(subject, sequence(1, prompt=7, max_tokens=9), drafts=[])
    while not subject.preemptions:
        second.drafts = [8]
        step(subject)
    assert (second.drafts, second.blocks, second.computed) == ([], [], 0)


def test_an_equal_beginning_is_not_computed_again() -> None:
    subject = scheduler(budget=16)
    prompt = tuple(range(10))
    first = Sequence(0, prompt, SamplingParams(max_tokens=2))
    second = Sequence(1, (*prompt, 7, 5), SamplingParams(max_tokens=2))
    subject.add(first)
    while subject.has_work:
        step(subject)
    subject.add(second)
    assert step(subject) == [(1, 8, 4)]
    assert (first.cached, second.cached) == (0, 8)


def test_sequences_spread_over_the_pools() -> None:
    subject = scheduler(budget=8, running=4, pools=2)
    for id_ in range(4):
        subject.add(sequence(id_, prompt=4))
    step(subject)
    assert [wanted.rank for wanted in subject.running] == [0, 1, 0, 1]


def test_a_sequence_goes_to_the_pool_that_knows_its_beginning_if_that_is_not_much_fuller() -> None:
    subject = scheduler(budget=16, running=4, pools=2)
    prompt = tuple(range(8))
    subject.add(sequence(0, prompt=1, max_tokens=9))
    subject.add(Sequence(1, prompt, SamplingParams(max_tokens=1)))
    step(subject)
    subject.add(sequence(2, prompt=8))
    subject.add(Sequence(3, (*prompt, 8), SamplingParams(max_tokens=2)))
    assert step(subject) == [(0, 1, 1), (2, 0, 8), (3, 8, 1)]
    assert [(wanted.id, wanted.rank) for wanted in subject.running] == [(0, 0), (2, 1), (3, 1)]


def test_each_pool_has_a_budget_of_its_own() -> None:
    subject = scheduler(budget=8, running=4, pools=2)
    for id_ in range(3):
        subject.add(sequence(id_, prompt=12))
    assert step(subject) == [(0, 0, 8), (1, 0, 8)]


def test_only_a_sequence_of_the_same_pool_gives_way() -> None:
    subject = scheduler(blocks=4, size=4, budget=16, running=3, pools=2)
    for id_ in range(3):
        subject.add(sequence(id_, prompt=7, max_tokens=9))
    while not subject.preemptions:
        step(subject)
    assert [wanted.id for wanted in subject.waiting] == [2]
    assert [(wanted.id, wanted.rank) for wanted in subject.running] == [(0, 0), (1, 1)]
