"""The engine of rank 0: one thread that owns scheduler and runner, and a door that any other thread may knock at.

The thread sleeps while there is nothing to do, but for a step without sequences every few seconds. That sign of life
keeps the other ranks' pending broadcast from timing out, lets each rank prove progress, and costs no computation.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from deepseek_runtime.dist.liveness import LostRankError
from deepseek_runtime.engine.sampling import NumericsError, Sampled, SamplingParams
from deepseek_runtime.engine.scheduler import Scheduler, Slot
from deepseek_runtime.engine.sequence import FinishReason, Sequence
from deepseek_runtime.engine.speculation import Speculation
from deepseek_runtime.engine.step import Operation
from deepseek_runtime.engine.tally import Tally

logger = logging.getLogger(__name__)

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Leader(Protocol):
    """What the engine needs of a `Runner`."""

    @property
    def speculation(self) -> Speculation: ...

    def lead(self, slots: Rows[Slot]) -> dict[int, list[Sampled]]: ...

    def draft(self, slots: Rows[Slot], sampled: Mapping[int, Rows[Sampled]]) -> None: ...

    def rebalance(self) -> float | None: ...

    def announce(self, operation: Operation) -> None: ...


@dataclass(frozen=True, slots=True)
class Token:
    """The next token of a sequence; with a finish reason it is the last one.

    `cached` is how many tokens of the prompt did not need to be computed, `admitted_at` when the first step of the
    sequence began, in seconds of the monotonic clock.
    """

    sampled: Sampled
    finish_reason: FinishReason | None
    cached: int = 0
    admitted_at: float | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """Nothing more will come for this sequence, nor for any other: the group is broken, or its time to drain is over.

    `code` is `group_broken` or `draining`, as for a `RefusedError`.
    """

    message: str
    code: str = "group_broken"


@dataclass(frozen=True, slots=True)
class Failed:
    """This sequence cannot go on, by its own request's doing; the others can. Nothing more will come for it."""

    message: str


Event = Token | Failed | Broken


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue. `sink` gets the events, on the engine's thread: it must be quick and must not raise.

    Requests of a lower `priority` number are served first.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    sink: Callable[[Event], None]
    priority: int = 0


class RefusedError(RuntimeError):
    """The engine takes no request now; a later try may succeed. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A consistent look at the engine. `step_age` is the time in seconds since it last proved progress.

    `prefix_queries` are tokens looked up in the prefix cache, `prefix_hits` those found there, `prefix_evictions` known
    blocks that had to be emptied. `blocks` counts those of all pools. `step_tokens` and `step_seconds` are the engine's
    own and go on counting. `expert_load` is the work of the busiest rank over the mean when experts were last looked
    at, None before; `corrupted` counts sequences whose logits were no numbers.
    """

    running: int
    waiting: int
    cache_usage: float
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    prefix_evictions: int
    speculation: Speculation
    steps: int
    step_age: float
    blocks: int
    block_size: int
    step_tokens: Tally
    step_seconds: Tally
    expert_load: float | None
    corrupted: int


class Engine:
    """Accepts requests from any thread and runs them in steps on its own.

    `max_queued` bounds the sequences that wait beyond those that run. `on_failure` is told once, from whichever thread
    noticed, that the group is broken. Every `rebalance_every` steps the ranks even out their work; 0 is never.
    """

    def __init__(
        self,
        runner: Leader,
        scheduler: Scheduler,
        *,
        max_queued: int,
        on_failure: Callable[[str], None],
        keep_alive: float = 5.0,
        rebalance_every: int = 0,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._limit = scheduler.max_running + max_queued
        self._on_failure = on_failure
        self._keep_alive = keep_alive
        self._rebalance_every = rebalance_every
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._active: dict[int, tuple[Sequence, Request]] = {}
        self._idle = threading.Event()
        self._idle.set()
        self._closed: RefusedError | None = None
        self._stopping = False
        self._ids = itertools.count()
        self._steps = 0
        self._step_tokens = Tally(STEP_TOKENS)
        self._step_seconds = Tally(STEP_SECONDS)
        self._expert_load: float | None = None
        self._corrupted = 0
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to run steps."""
        self._progress = time.monotonic()
        self._thread.start()

    def submit(self, requests: Rows[Request]) -> list[int]:
        """Queue all the requests or none; their sequence ids.

        Raises RefusedError when full, draining or broken, ValueError for a sequence that never fits into the cache.
        """
        with self._lock:
            if self._closed:
                raise self._closed
            if len(self._active) + len(requests) > self._limit:
                raise RefusedError("queue_full", f"all {self._limit} places for requests are taken, try again later")
            sequences = [
                Sequence(next(self._ids), request.prompt, request.params, priority=request.priority)
                for request in requests
            ]
            for sequence in sequences:
                self._scheduler.check(sequence)
            self._active |= {s.id: (s, request) for s, request in zip(sequences, requests, strict=True)}
            self._idle.clear()
        for sequence in sequences:
            self._commands.put(partial(self._add, sequence))
        return [sequence.id for sequence in sequences]

    def cancel(self, ids: Rows[int]) -> None:
        """Stop the sequences before the next step and free what they hold. Those that ended already are left alone."""
        self._commands.put(partial(self._cancel, ids))

    def drain(self, timeout: float) -> bool:
        """Refuse new requests, tell the other ranks, and wait for the accepted ones; False if they take longer."""
        with self._lock:
            self._closed = self._closed or RefusedError("draining", "this server is shutting down, try another one")
        self._commands.put(partial(self._runner.announce, Operation.DRAIN))
        return self._idle.wait(timeout)

    def stop(self, timeout: float) -> bool:
        """Let the other ranks leave their loops and end the thread; False if a step still runs after `timeout`."""
        self._commands.put(self._stop)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def fail(self, message: str) -> None:
        """Give up every request with a clean error. Any thread may call it, also while a step hangs."""
        with self._lock:
            already = self._closed is not None and self._closed.code == "group_broken"
            self._closed = RefusedError("group_broken", message)
        self._give_up(Broken(message))
        if not already:
            self._on_failure(message)

    def abandon(self, message: str) -> None:
        """Give up what draining did not finish in time; the group is whole, and ends in good order."""
        self._give_up(Broken(message, "draining"))

    def _give_up(self, event: Broken) -> None:
        with self._lock:
            requests = [request for _, request in self._active.values()]
            self._active.clear()
            self._idle.set()
        for request in requests:
            request.sink(event)

    def stats(self) -> EngineStats:
        """Figures for metrics and readiness; cheap, from any thread."""
        scheduler = self._scheduler
        running = len(scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(len(self._active) - running, 0),
            cache_usage=scheduler.cache_usage,
            preemptions=scheduler.preemptions,
            prefix_queries=sum(pool.queries for pool in scheduler.pools),
            prefix_hits=sum(pool.hits for pool in scheduler.pools),
            prefix_evictions=sum(pool.evictions for pool in scheduler.pools),
            speculation=self._runner.speculation.snapshot(),
            steps=self._steps,
            step_age=time.monotonic() - self._progress,
            blocks=sum(pool.num_blocks for pool in scheduler.pools),
            block_size=scheduler.pools[0].block_size,
            step_tokens=self._step_tokens,
            step_seconds=self._step_seconds,
            expert_load=self._expert_load,
            corrupted=self._corrupted,
        )

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                if not self._stopping:
                    self._step()
        except NumericsError as error:
            self._corrupted += 1
            logger.error("%s", error)
            self.fail(str(error))
        except LostRankError as error:
            self.fail(str(error))
        except Exception:
            if self._closed is None or self._closed.code != "group_broken":  # else it is the echo of what is known
                logger.exception("a step failed")
            self.fail("a step failed, the server's log has the details")

    def _obey(self) -> None:
        """Carry out what was asked since the last step; with nothing to run, wait for it."""
        wait = None if self._scheduler.has_work else self._keep_alive
        try:
            command = self._commands.get(block=wait is not None, timeout=wait)
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _step(self) -> None:
        slots = self._scheduler.schedule()
        if slots:
            started = time.monotonic()
            for slot in slots:
                slot.sequence.admitted_at = slot.sequence.admitted_at or started
            sampled = self._runner.lead(slots)
            self._steps += 1
            self._give_up_faulty(slots)
            self._scheduler.commit(slots, {id_: [token.token for token in tokens] for id_, tokens in sampled.items()})
            self._deliver(slots, sampled)
            self._runner.draft(slots, sampled)
            self._step_tokens.add(sum(slot.length for slot in slots))
            self._step_seconds.add(time.monotonic() - started)
            if self._rebalance_every and self._steps % self._rebalance_every == 0:
                self._expert_load = self._runner.rebalance()
        else:
            self._runner.announce(Operation.STEP)
        self._progress = time.monotonic()

    def _give_up_faulty(self, slots: Rows[Slot]) -> None:
        """End the sequences whose own requests made a token impossible, before anything of the step counts for them."""
        for sequence in (slot.sequence for slot in slots):
            if sequence.fault is None:
                continue
            logger.warning("the grammar of a request failed", exc_info=sequence.fault)
            self._scheduler.cancel(sequence)
            if entry := self._active.get(sequence.id):
                cause = f"{type(sequence.fault).__name__}: {sequence.fault}"
                entry[1].sink(Failed(f"the grammar of this request failed: {cause}"))
                self._forget(sequence.id)

    def _deliver(self, slots: Rows[Slot], sampled: Mapping[int, Rows[Sampled]]) -> None:
        for sequence in (slot.sequence for slot in slots):
            tokens, entry = sampled.get(sequence.id), self._active.get(sequence.id)
            if not tokens or not entry:
                continue
            *ahead, last = tokens
            sink = entry[1].sink
            for token in ahead:
                sink(Token(token, None, sequence.cached, sequence.admitted_at))
            sink(Token(last, sequence.finish_reason, sequence.cached, sequence.admitted_at))
            if sequence.finish_reason is not None:
                self._forget(sequence.id)

    def _add(self, sequence: Sequence) -> None:
        if sequence.id in self._active:
            self._scheduler.add(sequence)

    def _cancel(self, ids: Rows[int]) -> None:
        for id_ in ids:
            if entry := self._active.get(id_):
                self._scheduler.cancel(entry[0])
                self._forget(id_)

    def _forget(self, id_: int) -> None:
        with self._lock:
            self._active.pop(id_, None)
            if not self._active:
                self._idle.set()

    def _stop(self) -> None:
        self._runner.announce(Operation.STOP)
        self._stopping = True
