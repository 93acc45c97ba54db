"""The engine's thread over a model without weights: answers, order, cancellation, drain, failure."""

import queue
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.engine import Broken, Engine, Event, Failed, RefusedError, Request, Token
from deepseek_runtime.engine.runner import Runner
from deepseek_runtime.engine.sampling import SamplingParams, TokenMask
from deepseek_runtime.engine.scheduler import Scheduler
from deepseek_runtime.engine.sequence import FinishReason
from deepseek_runtime.engine.step import Operation, Outcome, SequencePlan, StepPlan
from deepseek_runtime.health import Health
from deepseek_runtime.server.metrics import Metrics
from fake_model import EchoExecutor, next_token

EVICTIONS = "dsv3_prefix_cache_evictions_total"


@dataclass
class Channel:
    """A channel to ranks that do not exist; it keeps what was sent."""

    world_size: int = 2
    rank: int = 0
    sent: queue.SimpleQueue[StepPlan] = field(default_factory=queue.SimpleQueue)

    def broadcast_ints(self, values: list[int] | None) -> list[int]:
        assert values is not None
        self.sent.put(StepPlan.decode(values))
        return values


class GatedExecutor(EchoExecutor):
    """Runs a step only when it is let to; may be told to fail."""

    def __init__(self, num_blocks: int = 12, block_size: int = 4) -> None:
        super().__init__(num_blocks, block_size)
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.error: Exception | None = None
        self.gate.set()

    def run(self, plan: StepPlan) -> Tensor:
        self.entered.release()
        self.gate.wait()
        if self.error:
            raise self.error
        return super().run(plan)


class RecordingExecutor(EchoExecutor):
    """Keeps what it was told to run."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.calls: list[tuple[str, object]] = []

    def run(self, plan: StepPlan) -> Tensor:
        self.calls.append(("run", plan))
        return super().run(plan)

    def draft(self, outcome: Outcome) -> Tensor:
        self.calls.append(("draft", outcome))
        return super().draft(outcome)

    def extend(self, tokens: Rows[int]) -> Tensor:
        self.calls.append(("extend", tuple(tokens)))
        return super().extend(tokens)


class Sink:
    """Collects one sequence's events."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def until_failed(self) -> list[Event]:
        """Every event up to one that is no token."""
        events = [self.events.get(timeout=10)]
        while isinstance(events[-1], Token):
            events.append(self.events.get(timeout=10))
        return events

    def tokens(self) -> tuple[list[int], FinishReason]:
        tokens = []
        while True:
            event = self.events.get(timeout=10)
            assert isinstance(event, Token), event
            tokens.append(event.sampled.token)
            if event.finish_reason is not None:
                return tokens, event.finish_reason


class Bench:
    """An engine with its surroundings."""

    def __init__(self, channel: Channel, drafts: int = 0) -> None:
        self.executor = GatedExecutor()
        self.channel = channel
        self.failures: list[str] = []
        runner = Runner(self.executor, self.channel, vocab_size=260, speculative_tokens=drafts)
        scheduler = Scheduler(BlockManager(12, 4), token_budget=8, max_running=3)
        self.engine = Engine(runner, scheduler, max_queued=3, on_failure=self.failures.append, keep_alive=0.05)
        self.engine.start()

    def submit(
        self, prompt: tuple[int, ...], max_tokens: int = 8, priority: int = 0, mask: TokenMask | None = None
    ) -> tuple[int, Sink]:
        sink = Sink()
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=frozenset({1}), mask=mask)
        return self.engine.submit([Request(prompt, params, sink.events.put, priority)])[0], sink


@pytest.fixture
def bench() -> Iterator[Bench]:
    subject = Bench(Channel())
    yield subject
    subject.executor.gate.set()
    subject.engine.stop(5)


def alone(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens and (not tokens[len(prompt) :] or tokens[-1] != 1):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def test_answers_in_a_crowded_cache_equal_those_given_alone(bench: Bench) -> None:
    prompts = [tuple(range(10 + n, 10 + 3 * n + 5)) for n in range(6)]
    sinks = [bench.submit(prompt, max_tokens=14)[1] for prompt in prompts]
    assert [sink.tokens()[0] for sink in sinks] == [alone(prompt, 14) for prompt in prompts]
    assert bench.engine.stats().preemptions > 0
    assert bench.engine.drain(5)
    assert bench.engine.stats().cache_usage == 0


def test_forgotten_prefixes_are_counted_and_shown_to_prometheus(bench: Bench) -> None:
    metrics = Metrics("echo")
    metrics.watch(bench.engine.stats, Health(rank=0, world_size=1))
    shown = []
    # Of 12 blocks a prompt fills 10, and the next finds 2 empty. Repeated, its last block is computed anew.
    for first, known in ((2, 0), (50, 0), (50, 36)):
        bench.submit(tuple(range(first, first + 40)), max_tokens=1)[1].tokens()
        [line] = [line for line in metrics.render().decode().splitlines() if line.startswith(f"{EVICTIONS} ")]
        shown.append(float(line.split()[1]))
        assert bench.engine.stats().prefix_hits == known
    assert shown == [0, 8, 9]


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_drafts_change_no_answer_in_a_crowded_cache(drafts: int) -> None:
    bench = Bench(Channel(world_size=1), drafts)
    prompts = [tuple(range(10 + n, 10 + 3 * n + 5)) for n in range(5)] + [(0, 258, 50, 51, 52, 53, 259)]
    sinks = [bench.submit(prompt, max_tokens=14)[1] for prompt in prompts]
    assert [sink.tokens()[0] for sink in sinks] == [alone(prompt, 14) for prompt in prompts]
    assert bench.engine.drain(5)
    counts = bench.engine.stats().speculation
    assert counts.tokens > counts.forwards
    assert all(0 < held < tried for held, tried in zip(counts.accepted, counts.drafted, strict=True))
    assert bench.engine.stats().cache_usage == 0
    assert bench.engine.stop(5)


def test_better_priorities_are_served_first(bench: Bench) -> None:
    bench.executor.gate.clear()
    bench.submit((5, 6), max_tokens=2)
    bench.executor.entered.acquire(timeout=10)
    for priority in (0, 2, 1, 0, -1):
        bench.submit((5, 6 + priority), max_tokens=2, priority=priority)
    bench.executor.gate.set()
    assert bench.engine.drain(5)
    started = [part.token_ids[1] - 6 for plan in bench.executor.steps for part in plan.sequences if not part.start]
    assert started == [0, -1, 0, 0, 1, 2]


def test_an_end_token_ends_an_answer(bench: Bench) -> None:
    tokens, reason = bench.submit((0, 258, 50, 51, 259))[1].tokens()
    assert (tokens, reason) == ([50, 51, 1], FinishReason.STOP)


def test_one_too_many_is_refused_and_the_others_are_served(bench: Bench) -> None:
    bench.executor.gate.clear()
    sinks = [bench.submit((5, 6), max_tokens=2)[1] for _ in range(6)]
    with pytest.raises(RefusedError, match="6 places") as caught:
        bench.submit((5, 6))
    assert caught.value.code == "queue_full"
    bench.executor.gate.set()
    assert all(len(sink.tokens()[0]) == 2 for sink in sinks)


def test_a_cancelled_sequence_takes_part_in_no_further_step(bench: Bench) -> None:
    bench.executor.gate.clear()
    id_, _ = bench.submit((5, 6), max_tokens=20)
    bench.executor.entered.acquire(timeout=10)
    bench.engine.cancel([id_])
    bench.executor.gate.set()
    assert bench.engine.drain(5)
    assert sum(bool(plan.sequences) for plan in bench.executor.steps) == 1
    assert bench.engine.stats().cache_usage == 0


def test_an_idle_engine_sends_signs_of_life_and_runs_nothing(bench: Bench) -> None:
    plans = [bench.channel.sent.get(timeout=10) for _ in range(3)]
    assert plans == [StepPlan()] * 3
    assert bench.executor.steps == []
    assert bench.engine.stats().step_age < 5


def test_drain_finishes_what_runs_and_refuses_what_comes(bench: Bench) -> None:
    bench.executor.gate.clear()
    sink = bench.submit((5, 6), max_tokens=3)[1]
    assert not bench.engine.drain(0.01)
    with pytest.raises(RefusedError, match="shutting down"):
        bench.submit((5, 6))
    bench.executor.gate.set()
    assert bench.engine.drain(5)
    assert len(sink.tokens()[0]) == 3
    assert bench.engine.stop(5)
    operations = []
    while not bench.channel.sent.empty():
        operations.append(bench.channel.sent.get().operation)
    assert Operation.DRAIN in operations
    assert operations[-1] is Operation.STOP


def test_a_failing_step_breaks_the_group_with_a_clean_error_for_everyone(bench: Bench) -> None:
    bench.executor.error = RuntimeError("connection closed by peer")
    sinks = [bench.submit((5, 6))[1] for _ in range(2)]
    for sink in sinks:
        event = sink.events.get(timeout=10)
        assert isinstance(event, Broken)
        assert "a step failed" in event.message
    with pytest.raises(RefusedError) as caught:
        bench.submit((5, 6))
    assert caught.value.code == "group_broken"
    assert len(bench.failures) == 1


def test_logits_that_are_no_numbers_are_told_to_everyone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.executor, "_logits", lambda _: torch.full((268,), torch.nan))
    event = bench.submit((5, 6))[1].events.get(timeout=10)
    assert isinstance(event, Broken)
    assert "logits are not numbers" in event.message
    assert bench.failures == [event.message]


def crash(generated: Rows[int]) -> NDArray[np.bool_] | None:
    """A grammar that cannot be followed beyond two tokens."""
    if len(generated) > 1:
        raise KeyError("no such state")
    return None


BAD_MASKS: dict[str, Any] = {
    "KeyError: 'no such state'": crash,
    "float64 of shape (260,)": lambda _: np.ones(260),
    "bool of shape (1, 260)": lambda _: np.ones((1, 260), dtype=np.bool_),
    "bool of shape ()": lambda _: np.array(True),
    "not list": lambda _: [True] * 260,
}


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("complaint", BAD_MASKS)
def test_a_grammar_that_fails_ends_its_own_answer_and_no_other(complaint: str, drafts: int) -> None:
    bench = Bench(Channel(world_size=1), drafts)
    prompts = [tuple(range(10 + n, 19 + n)) for n in range(2)]
    _, failing = bench.submit((0, 258, 50, 51, 52, 53, 259), max_tokens=14, mask=BAD_MASKS[complaint])
    sinks = [bench.submit(prompt, max_tokens=14)[1] for prompt in prompts]
    *tokens, failed = failing.until_failed()
    assert isinstance(failed, Failed)
    assert failed.message.startswith("the grammar of this request failed: ")
    assert complaint in failed.message
    assert [token.sampled.token for token in tokens if isinstance(token, Token)] == [50, 51][: len(tokens)]
    assert len(tokens) == (2 if BAD_MASKS[complaint] is crash else 0)
    assert [sink.tokens()[0] for sink in sinks] == [alone(prompt, 14) for prompt in prompts]
    assert bench.submit((0, 258, 50, 51, 259))[1].tokens()[0] == [50, 51, 1]
    assert bench.engine.drain(5)
    assert (bench.engine.stats().cache_usage, bench.failures) == (0, [])
    assert bench.engine.stop(5)


def test_requests_fail_at_once_also_while_a_step_hangs(bench: Bench) -> None:
    bench.executor.gate.clear()
    sink = bench.submit((5, 6))[1]
    bench.executor.entered.acquire(timeout=10)
    bench.engine.fail("rank 1 is gone")
    assert sink.events.get(timeout=1) == Broken("rank 1 is gone")
    assert bench.failures == ["rank 1 is gone"]


def test_followers_run_the_plans_they_receive_until_told_to_stop() -> None:
    plans = queue.SimpleQueue[list[int]]()

    class Follower:
        rank, world_size = 1, 2

        def broadcast_ints(self, values: list[int] | None) -> list[int]:
            assert values is None
            return plans.get(timeout=10)

    executor, seen = EchoExecutor(4, 4), list[Operation]()

    work = StepPlan(sequences=(SequencePlan(0, (5, 6), (0,), 1),))
    for plan in (StepPlan(), work, StepPlan(Operation.DRAIN), StepPlan(Operation.STOP)):
        plans.put(plan.encode())
    Runner(executor, Follower(), vocab_size=260).follow(seen.append)
    assert executor.steps == [work]
    assert seen == [Operation.STEP, Operation.STEP, Operation.DRAIN, Operation.STOP]


class Link:
    """One end of a channel between two ranks of this process."""

    world_size = 2

    def __init__(self, rank: int, messages: queue.SimpleQueue[list[int]]) -> None:
        self.rank = rank
        self._messages = messages

    def broadcast_ints(self, values: list[int] | None) -> list[int]:
        if values is None:
            return self._messages.get(timeout=10)
        self._messages.put(values)
        return values


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_a_follower_runs_every_pass_of_the_leader(drafts: int) -> None:
    messages = queue.SimpleQueue[list[int]]()
    executors = [RecordingExecutor(12, 4) for _ in range(2)]
    leader, follower = (
        Runner(executor, Link(rank, messages), vocab_size=260, speculative_tokens=drafts)
        for rank, executor in enumerate(executors)
    )
    work = threading.Thread(target=follower.follow, args=(lambda _: None,))
    work.start()
    scheduler = Scheduler(BlockManager(12, 4), token_budget=8, max_running=3)
    engine = Engine(leader, scheduler, max_queued=3, on_failure=pytest.fail, keep_alive=0.05)
    engine.start()
    sinks = [Sink() for _ in range(4)]
    params = SamplingParams(max_tokens=14, temperature=0.0)
    engine.submit([Request(tuple(range(9 + n)), params, sink.events.put) for n, sink in enumerate(sinks)])
    assert [sink.tokens()[0] for sink in sinks] == [alone(tuple(range(9 + n)), 14) for n in range(4)]
    assert engine.stop(5)
    work.join(5)
    assert executors[0].calls == executors[1].calls
    assert {kind for kind, _ in executors[0].calls} == {0: {"run"}, 1: {"run", "draft"}}.get(
        drafts, {"run", "draft", "extend"}
    )
