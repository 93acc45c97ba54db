"""One rank from its start to its end: the main thread waits for signals and deaths, another joins, loads and runs.

So a signal is obeyed and a lost rank noticed also while a collective or a step hangs; the process then leaves without
asking that thread. Signals reach ranks one after the other or one alone: the group's end is rank 0's to decide, and the
others wait for its word, the plan that stops them or, before there are plans, its goodbye.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from deepseek_runtime.dist.group import Group
from deepseek_runtime.dist.liveness import Callbacks, describe_loss
from deepseek_runtime.dist.topology import TopologyError
from deepseek_runtime.engine.engine import Engine, Event, Request, Token
from deepseek_runtime.engine.runner import Runner
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.step import Operation
from deepseek_runtime.health import Health, Heartbeat, Phase
from deepseek_runtime.settings import StartupError

logger = logging.getLogger(__name__)

ANNOUNCEMENT_SECONDS = 10.0
"""Within this time after its own SIGTERM, a follower hears from rank 0 that the group drains, or takes it as a loss."""

WARM_UP_STALL_SECONDS = 300.0
"""The least time without any exchange that counts as a stall in the first request, which may still compile kernels."""

LOSS_SECONDS = 3.0
"""Within this time after a computation failed, the watch over the ranks names the one that died, if that was why."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a rank's life ends: the exit code, and why if it is not 0.

    `failed` is a computation that went wrong; after a `sudden` end in peace a collective may still be pending.
    """

    code: int
    message: str = ""
    failed: bool = False
    sudden: bool = False


End = Callable[[Ending], None]
"""Asks for the end of the rank; from any thread, at once."""


class Role(ABC):
    """What a rank does once its weights are loaded."""

    def __init__(self, health: Health, end: End) -> None:
        self._health = health
        self._end = end

    @abstractmethod
    def run(self) -> None:
        """Work; returns when the group was stopped in good order, or leaves the work to another thread."""

    def drain(self) -> None:  # noqa: B027 (only the leader has accepted something)
        """Finish what was accepted, then end with code 0."""

    def give_up(self, message: str) -> None:  # noqa: B027 (only the leader has clients to tell)
        """Tell whoever waits that the group is broken."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to finish answers while draining, and that a group may go without any exchange between its ranks."""

    drain: float
    stall: float


class Leader(Role):
    """Rank 0: the engine, and the requests that it has accepted."""

    def __init__(self, health: Health, end: End, engine: Engine, group: Group, timeouts: Timeouts) -> None:
        super().__init__(health, end)
        self._engine = engine
        self._group = group
        self._timeouts = timeouts

    def run(self) -> None:
        """Start the engine and prove it by a first request through every rank; from then on nobody may stall."""
        self._engine.start()
        self._health.enter(Phase.WARMING_UP)
        self._group.expect_progress(max(self._timeouts.stall, WARM_UP_STALL_SECONDS))
        _first_request(self._engine)
        self._health.watch(lambda: self._engine.stats().step_age)
        self._health.watch_ranks(self._group.suspect, self._group.rank_ages)
        self._group.expect_progress(self._timeouts.stall)
        self._health.enter(Phase.READY)

    def drain(self) -> None:
        self._health.enter(Phase.DRAINING)
        if not self._engine.drain(self._timeouts.drain):
            self._engine.abandon(
                f"this server shuts down, and the answer took longer than {self._timeouts.drain:g} s more"
            )
        stopped = self._engine.stop(ANNOUNCEMENT_SECONDS)
        self._end(Ending(0) if stopped else Ending(1, "a step did not end while shutting down"))

    def give_up(self, message: str) -> None:
        self._engine.fail(message)


class Follower(Role):
    """Every other rank: runs what rank 0 sends."""

    def __init__(self, health: Health, end: End, runner: Runner) -> None:
        super().__init__(health, end)
        self._runner = runner
        self._heartbeat = Heartbeat()

    def run(self) -> None:
        """Follow until rank 0 says stop."""
        self._heartbeat.beat()
        self._health.watch(self._heartbeat.age)
        self._health.enter(Phase.WARMING_UP)
        self._runner.follow(self._on_message)
        self._end(Ending(0))

    def _on_message(self, operation: Operation) -> None:
        self._heartbeat.beat()
        if operation in (Operation.DRAIN, Operation.STOP):
            self._health.enter(Phase.DRAINING)
        elif self._health.phase is Phase.WARMING_UP:
            self._health.enter(Phase.READY)


class RankProcess:
    """Supervises one rank. `join` meets the other ranks; `prepare` loads the weights and gives the rank its role."""

    def __init__(
        self,
        health: Health,
        join: Callable[[], Group],
        prepare: Callable[[Group, End], Role],
    ) -> None:
        self._health = health
        self._join = join
        self._prepare = prepare
        self._events: queue.SimpleQueue[Ending | None] = queue.SimpleQueue()
        self._role: Role | None = None
        self._group: Group | None = None
        self._watched = False
        self._news: queue.SimpleQueue[Ending] = queue.SimpleQueue()
        self._signals = 0

    @property
    def watched(self) -> bool:
        """Whether this rank met the others, so that they hear how it ends."""
        return self._watched

    @property
    def interrupted(self) -> bool:
        """Whether a signal came before the end."""
        return self._signals > 0

    def run(self) -> Ending:
        """Live until the end. A first SIGTERM or SIGINT drains, a second one ends at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put(None))
        threading.Thread(target=self._work, name="rank", daemon=True).start()
        while (ending := self._events.get()) is None:
            self._signals += 1
            self._on_signal()
        return self._finish(self._explained(ending))

    def _explained(self, ending: Ending) -> Ending:
        """Say which other rank is the cause, if one is.

        A step mostly fails because another rank died; gloo or NCCL would not say which. And a signal may be torchrun's,
        which ends this rank as soon as it sees another one end.
        """
        if self._group is None or self._group.world_size == 1 or not (ending.failed or ending.sudden):
            return ending
        if ending.sudden:
            self._group.leave()  # hears what others have said until now
        try:
            return self._news.get(timeout=0 if ending.sudden else LOSS_SECONDS)
        except queue.Empty:
            return ending

    def _on_signal(self) -> None:
        if self._signals > 1:
            self._events.put(Ending(1, "told twice to terminate: leaving at once"))
        elif self._health.rank > 0 and self._watched:
            _start_timer(ANNOUNCEMENT_SECONDS, self._on_no_word)
        elif self._role is None or self._health.phase is not Phase.READY:
            self._events.put(Ending(0, sudden=True))  # nothing was accepted yet
        else:
            threading.Thread(target=self._role.drain, name="drain", daemon=True).start()

    def _on_no_word(self) -> None:
        if self._health.phase is not Phase.DRAINING:
            self._events.put(Ending(1, "terminated, while rank 0 does not shut down"))

    def _finish(self, ending: Ending) -> Ending:
        if ending.code:
            logger.error("%s", ending.message)
            self._health.enter(Phase.BROKEN, ending.message)
            if self._role:
                self._role.give_up(ending.message)
            if self._group and (ending.code == 2 or ending.failed):
                self._group.fail(ending.code, ending.message)
        elif self._group and not ending.sudden:
            self._group.close()
        return ending

    def _work(self) -> None:
        try:
            self._health.enter(Phase.JOINING)
            self._group = self._join()
            self._group.watch(Callbacks(self._on_lost, self._on_left, self._on_failed))
            self._watched = True
            self._health.enter(Phase.LOADING)
            self._role = self._prepare(self._group, self._events.put)
        except (StartupError, TopologyError, ValueError, OSError) as error:
            self._events.put(Ending(2, str(error)))
        except Exception as error:
            self._crash(error)
        else:
            self._run(self._role)

    def _run(self, role: Role) -> None:
        try:
            role.run()
        except Exception as error:
            self._crash(error)

    def _crash(self, error: Exception) -> None:
        logger.exception("this rank cannot go on")
        self._events.put(Ending(1, f"{type(error).__name__}: {error}", failed=True))

    def _on_lost(self, rank: int | None, reason: str) -> None:
        self._hear(Ending(1, describe_loss(rank, reason)))

    def _on_failed(self, rank: int, code: int, sentence: str) -> None:
        self._hear(Ending(code, f"rank {rank}: {sentence}"))

    def _on_left(self) -> None:
        self._hear(Ending(0, sudden=True))

    def _hear(self, news: Ending) -> None:
        self._news.put(news)
        self._events.put(news)


def _start_timer(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def _first_request(engine: Engine) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit([Request((0,) * 8, SamplingParams(max_tokens=2, temperature=0.0), events.put)])
    while True:
        event = events.get()
        if not isinstance(event, Token):
            raise RuntimeError(f"the first step failed: {event.message}")
        if event.finish_reason is not None:
            return
