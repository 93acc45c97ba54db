"""Ranks wait for each other over the store, so that no collective is pending while one of them loads for minutes.

A collective would time out without a name; here the waiting ranks know who is late and how far it has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

POLL_SECONDS = 0.1
REPORT_SECONDS = 10.0
NAMED_RANKS = 4
"""Laggards that a sentence names; with more, it gives the number of the others."""


class Store(Protocol):
    """What a barrier needs of torch's store, which all ranks share."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def add(self, key: str, amount: int, /) -> int: ...

    def check(self, keys: list[str], /) -> bool: ...


class BarrierTimeoutError(RuntimeError):
    """Not every rank arrived in time; the message names those that did not, with their progress."""


class StoreBarrier:
    """Barriers and progress reports of one rank. A barrier's name is used once in the life of a group."""

    def __init__(self, store: Store, rank: int, world_size: int, report_every: float = REPORT_SECONDS) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._report_every = report_every
        self._reported = float("-inf")

    def report_progress(self, done: int, total: int) -> None:
        """Tell the others how far this rank has come. But for the end, what comes within a second is dropped."""
        now = time.monotonic()
        if done >= total or now - self._reported >= 1:
            self._reported = now
            self._store.set(f"progress/{self._rank}", f"{done} {total}")

    def wait(self, name: str, timeout: float, on_wait: Callable[[str], None] | None = None) -> None:
        """Block until every rank has called this with the name; BarrierTimeoutError after `timeout` seconds.

        While others lag, `on_wait` gets a sentence about them every `report_every` seconds.
        """
        self._store.set(f"{name}/{self._rank}", "here")
        if self._store.add(f"{name}/arrived", 1) == self._world_size:
            self._store.set(f"{name}/complete", "yes")
        deadline = time.monotonic() + timeout
        report_at = time.monotonic() + self._report_every
        pause = threading.Event()
        while not self._store.check([f"{name}/complete"]):
            now = time.monotonic()
            if now >= deadline:
                raise BarrierTimeoutError(f"{name}: after {timeout:g} s {self.describe_missing(name)}")
            if on_wait and now >= report_at:
                on_wait(f"{name}: {self.describe_missing(name)}")
                report_at = now + self._report_every
            pause.wait(POLL_SECONDS)

    def describe_missing(self, name: str) -> str:
        """A sentence about the ranks that have not arrived at a barrier."""
        missing = [rank for rank in range(self._world_size) if not self._store.check([f"{name}/{rank}"])]
        named = [self._describe(rank) for rank in missing[:NAMED_RANKS]]
        if rest := len(missing) - len(named):
            named.append(f"{rest} more")
        return f"{len(missing)} of {self._world_size} ranks have not arrived: {', '.join(named)}"

    def _describe(self, rank: int) -> str:
        if not self._store.check([f"progress/{rank}"]):
            return f"rank {rank} (no progress reported)"
        done, total = map(int, self._store.get(f"progress/{rank}").split())
        return f"rank {rank} ({done / max(total, 1):.0%} done)"
