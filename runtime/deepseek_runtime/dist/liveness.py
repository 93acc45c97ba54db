"""Every rank notices within seconds that another one died, whatever the model or a collective is doing.

Each rank holds one TCP connection to rank 0 and sends a sign of life over it. A closed connection or silence means
death; rank 0 tells the others. With the sign of life comes how far the rank has got, so that rank 0 can also name one
that lives but stalls. Threads and sockets only: no torch, so it works while torch hangs.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from deepseek_runtime.dist.line import Line
from deepseek_runtime.dist.progress import Progress, StallWatch
from deepseek_runtime.dist.topology import Topology
from deepseek_runtime.health import Suspect

OnLost = Callable[[int | None, str], None]
OnLeft = Callable[[], None]
OnFailed = Callable[[int, int, str], None]
ADDRESS_KEY = "liveness"
PARTING_SECONDS = 1.0
FAILING_SECONDS = 5.0
"""What the others get to read why this rank ends; whoever reads nothing takes its end for a death."""
LONGEST_SENTENCE = 2000


class Store(Protocol):
    """What is needed of torch's store, which all ranks share; `get` blocks until the key is there."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: between two signs of life, of silence that means death, and from the start to a rank's connection."""

    interval: float = 2.0
    silence: float = 10.0
    arrival: float = 120.0


class LostRankError(RuntimeError):
    """An exchange failed because another rank ended; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What a rank wants to hear, each on the watch's thread; after `on_lost` and `on_failed` the watch has ended.

    `on_lost(rank, reason)`: the first death; no rank where none can be told. `on_left()`: rank 0 said goodbye to this
    one. `on_failed(rank, code, sentence)`: a rank ends with an exit code and says why.
    """

    on_lost: OnLost
    on_left: OnLeft = lambda: None
    on_failed: OnFailed = lambda *_: None


class _EndError(Exception):
    """The group is at its end, as its sentence says. `words` tell the other ranks, `report` tells this one."""

    def __init__(self, sentence: str, words: tuple[str, ...], report: Callable[[Callbacks], None]) -> None:
        super().__init__(sentence)
        self.words, self.report = words, report


def describe_loss(rank: int | None, reason: str) -> str:
    """The sentence for people about what `on_lost` was told."""
    return f"{'the group' if rank is None else f'rank {rank}'} is lost: {reason}"


def _lost(rank: int | None, reason: str) -> _EndError:
    words = ("lost", "" if rank is None else str(rank), reason)
    return _EndError(describe_loss(rank, reason), words, lambda callbacks: callbacks.on_lost(rank, reason))


def _failed(rank: int, code: int, sentence: str) -> _EndError:
    words = ("failed", str(rank), str(code), sentence)
    return _EndError(f"rank {rank}: {sentence}", words, lambda callbacks: callbacks.on_failed(rank, code, sentence))


class Liveness:
    """The watch of one rank over the others, which ends with the first death or failure, as the group does."""

    def __init__(
        self,
        topology: Topology,
        store: Store,
        callbacks: Callbacks,
        limits: Limits | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._topology = topology
        self._store = store
        self._callbacks = callbacks
        self._limits = limits or Limits()
        self._progress = progress or Progress()
        self._stall_watch = StallWatch(topology.world_size, lag=self._limits.interval)
        self._farewell: tuple[str, ...] = ("bye",)
        self._end: _EndError | None = None
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._token = ""
        self._strangers: list[Line] = []
        self._peers: dict[int, Line] = {}
        self._awaited = set(range(1, topology.world_size)) if topology.rank == 0 else set()
        self._closing = threading.Event()
        self._waker, self._wakened = socket.socketpair()
        self._selector.register(self._wakened, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)

    def start(self) -> None:
        """Listen on rank 0, connect to it elsewhere; ConnectionError where it cannot be reached."""
        if self._topology.rank == 0:
            self._listen()
        else:
            self._connect()
        self._thread.start()

    def expect_progress(self, within: float) -> None:
        """On rank 0: from now on a group without any exchange for so many seconds is stalled, and so lost."""
        self._stall_watch.expect(within, time.monotonic())

    def suspect(self) -> Suspect | None:
        """On rank 0: a rank that holds up the others, named in half the time after which it counts as lost."""
        now = time.monotonic()
        quiet = [
            Suspect(rank, now - line.heard_at, f"rank {rank} is silent") for rank, line in self._peers.copy().items()
        ]
        quietest = max(quiet, key=lambda suspect: suspect.age, default=None)
        if quietest and quietest.age > self._limits.silence / 2:
            return quietest
        watch = self._stall_watch
        slowest = watch.slowest(now)
        return slowest if slowest and slowest.age > watch.limit / 2 + watch.lag else None

    def ages(self) -> dict[int, float]:
        """On rank 0: seconds since each rank got further, as far as their signs of life tell."""
        return self._stall_watch.ages(time.monotonic())

    def close(self) -> None:
        """Say goodbye, so that the others do not take the end of this connection for a death; from any thread."""
        self._closing.set()
        with contextlib.suppress(OSError):  # The watch may have ended already.
            self._waker.send(b"!")
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(self._limits.silence)

    def end_within(self, seconds: float) -> str | None:
        """Wait for the group's end; a sentence about it, None if it does not come."""
        self._thread.join(seconds)
        return str(self._end) if self._end else None

    def fail(self, code: int, sentence: str) -> None:
        """Tell the others why this rank ends, with an exit code, and close."""
        self._farewell = _failed(self._topology.rank, code, " ".join(sentence.split())[:LONGEST_SENTENCE]).words
        self.close()

    def _listen(self) -> None:
        host = self._topology.address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=self._topology.world_size)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._token = secrets.token_hex(16)
        self._store.set(ADDRESS_KEY, f"{host} {self._listener.getsockname()[1]} {self._token}")

    def _connect(self) -> None:
        host, port, token = self._store.get(ADDRESS_KEY).decode().split()
        try:
            connection = socket.create_connection((host, int(port)), timeout=self._limits.silence)
        except OSError as error:
            raise ConnectionError(f"rank 0's control connection at {host}:{port} cannot be opened: {error}") from error
        line = self._peers[0] = Line(connection)
        self._selector.register(line.socket, selectors.EVENT_READ, line)
        line.send("hello", token, str(self._topology.rank))

    def _run(self) -> None:
        started = next_beat = time.monotonic()
        try:
            while not self._closing.is_set():
                self._receive(self._limits.interval / 4)
                now = time.monotonic()
                if now >= next_beat:
                    self._tell("alive", str(self._progress.reached))
                    next_beat = now + self._limits.interval
                # Judged only after reading: signs of life that came while this process itself was held up still count.
                self._judge(now, started)
        except _EndError as error:
            self._end = error
        self._leave()
        if self._end:
            self._end.report(self._callbacks)

    def _receive(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Line):
                self._read(key.data)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            line = Line(self._listener.accept()[0])
            self._strangers.append(line)
            self._selector.register(line.socket, selectors.EVENT_READ, line)

    def _read(self, line: Line) -> None:
        try:
            messages = line.receive()
        except OSError as error:
            rank = self._rank_of(line)
            self._drop(line)
            if rank is not None:
                raise _lost(rank, f"its connection ended ({error}): the process died") from None
            return
        for message in messages:
            self._obey(line, message)

    def _rank_of(self, line: Line) -> int | None:
        return next((rank for rank, peer in self._peers.items() if peer is line), None)

    def _obey(self, line: Line, message: list[str]) -> None:
        rank = self._rank_of(line)
        match message:
            case ["hello", token, number] if line in self._strangers:
                self._admit(line, token, number)
            case ["alive", count] if rank is not None:
                self._stall_watch.observe(rank, int(count), line.heard_at)
            case ["bye"] if rank is not None:
                self._drop(line)
                if rank == 0:
                    self._callbacks.on_left()
            case ["lost", number, reason] if rank == 0:
                raise _lost(int(number) if number else None, reason)
            case ["failed", number, code, sentence] if rank is not None and number != str(self._topology.rank):
                raise _failed(int(number), int(code), sentence)

    def _admit(self, line: Line, token: str, number: str) -> None:
        """Take a newcomer for a rank. Anything else may reach the port too, but does not know the token."""
        known = secrets.compare_digest(token.encode(), self._token.encode())
        if not known or int(number) not in self._awaited:
            self._drop(line)
            return
        self._strangers.remove(line)
        self._peers[int(number)] = line
        self._awaited.remove(int(number))
        self._stall_watch.observe(int(number), 0, line.heard_at)

    def _judge(self, now: float, started: float) -> None:
        for rank, line in self._peers.items():
            if (silence := now - line.heard_at) > self._limits.silence:
                raise _lost(rank, f"it was silent for {silence:.1f} s")
        for line in [line for line in self._strangers if now - line.heard_at > self._limits.silence]:
            self._drop(line)
        if self._awaited and now - started > self._limits.arrival:
            raise _lost(min(self._awaited), f"it did not connect within {self._limits.arrival:g} s")
        if self._topology.rank == 0:
            self._stall_watch.observe(0, self._progress.reached, now)
            if verdict := self._stall_watch.verdict(now):
                raise _lost(*verdict)

    def _tell(self, *words: str) -> None:
        for line in self._peers.values():
            line.send(*words)

    def _drop(self, line: Line) -> None:
        self._selector.unregister(line.socket)
        line.socket.close()
        self._strangers = [other for other in self._strangers if other is not line]
        self._peers = {rank: peer for rank, peer in self._peers.items() if peer is not line}

    def _leave(self) -> None:
        self._selector.unregister(self._wakened)
        self._receive_until(lambda: not self._awaited, PARTING_SECONDS)
        # Also to a lost one: a rank that only stalls reads it and ends with the same sentence.
        self._tell(*(self._end.words if self._end else self._farewell))
        self._part()
        for line in (*self._peers.values(), *self._strangers):
            line.socket.close()
        for end in (self._listener, self._waker, self._wakened, self._selector):
            if end:
                end.close()

    def _part(self) -> None:
        """Wait until the others have read the last line and closed.

        Closing while lines of theirs are unread would reset the connection, which discards what they have not read.
        """
        for line in self._peers.values():
            line.finish()
        failing = self._end is None and self._farewell[0] == "failed"
        self._receive_until(lambda: not self._peers, FAILING_SECONDS if failing else PARTING_SECONDS)

    def _receive_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Go on listening; of what would end the watch only why a rank failed still matters."""
        deadline = time.monotonic() + seconds
        while not done() and (left := deadline - time.monotonic()) > 0:
            try:
                self._receive(left)
            except _EndError as error:
                if error.words[0] == "failed":
                    self._end = self._end or error
