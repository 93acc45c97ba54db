"""Which rank holds up the others: each counts its exchanges, rank 0 compares.

A rank that waits in an exchange looks as stuck as the one it waits for, but it has come further. Only integers and
times here, passed in: no clock, no thread. What a device has got to is asked through a function.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from deepseek_runtime.health import Suspect

MOST_MARKS = 512
"""Marks that are kept before those which the device has passed are dropped: a step has some hundreds."""

Passed = Callable[[], bool]
"""Whether the device has got past the point where this was made; from any thread, without waiting."""


class Progress:
    """Counts up when this rank enters an exchange with the others and when it leaves it: odd inside, even outside.

    A program runs ahead of its GPU. `mark` leaves a mark behind the work that the device was given so far; None where
    the program itself computes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mark: Callable[[], Passed] | None = None
        self._marks: deque[tuple[int, Passed]] = deque()
        self._lock = threading.Lock()

    @property
    def reached(self) -> int:
        """The newest count that the device has come to as well; from any thread."""
        with self._lock:
            while self._marks and self._marks[0][1]():
                self._marks.popleft()
            return self._marks[0][0] - 1 if self._marks else self.count

    def enter(self) -> None:
        self._advance()

    def leave(self) -> None:
        self._advance()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()

    def _advance(self) -> None:
        if self.mark is None:
            self.count += 1
            return
        mark = self.count + 1, self.mark()
        with self._lock:
            self._marks.append(mark)
            self.count += 1
        if len(self._marks) > MOST_MARKS:
            _ = self.reached


@dataclass(slots=True)
class StallWatch:
    """Judges the counts of all `ranks`; times are in seconds of one clock, `limit` is how long nothing may change.

    `lag` is how old a count may be when it is judged: what is known of a rank is as old as its last sign of life.
    """

    ranks: int
    limit: float = math.inf
    since: float = 0.0
    lag: float = 0.0
    _counts: dict[int, int] = field(default_factory=dict)
    _changed: dict[int, float] = field(default_factory=dict)
    _heard: dict[int, float] = field(default_factory=dict)

    def expect(self, limit: float, now: float) -> None:
        """From now on nothing may stay unchanged for longer than the limit; what was before does not count."""
        self._changed = dict.fromkeys(self._changed.copy(), now)
        self.limit, self.since = limit, now

    def observe(self, rank: int, count: int, now: float) -> None:
        """Take a rank's newest count."""
        self._heard[rank] = now
        if self._counts.get(rank) != count:
            self._changed[rank] = self.since = now
            self._counts[rank] = count

    def ages(self, now: float) -> dict[int, float]:
        """Seconds since each rank's count changed."""
        return {rank: now - at for rank, at in self._changed.copy().items()}

    def slowest(self, now: float) -> Suspect | None:
        """The rank that has come least far, for how long it has not got further, and a sentence about it.

        Which is no fault yet: in a group that works or idles, that time is short.
        """
        counts, ages = self._counts.copy(), self.ages(now)
        if len(counts) < self.ranks:
            return None
        least = min(counts.values())
        behind = [rank for rank in sorted(counts) if counts[rank] == least]
        oldest = max(behind, key=ages.__getitem__)
        waiting = sorted(set(counts) - set(behind))
        return Suspect(oldest, ages[oldest], _describe(behind, waiting, least, ages[oldest]))

    def verdict(self, now: float) -> tuple[int | None, str] | None:
        """The rank that stalls and a sentence about it, once no count has changed for longer than the limit.

        Of several that have come equally far, it is the one that gives no sign of life; if all do, none can be told.
        """
        overdue = now - self.since - self.limit - self.lag
        if len(self._counts) < self.ranks or overdue <= 0:
            return None
        least = min(self._counts.values())
        behind = sorted(rank for rank, count in self._counts.items() if count == least)
        waiting = sorted(set(self._counts) - set(behind))
        sentence = f"it stalls: {_describe(behind, waiting, least, now - self.since)}"
        if len(behind) == 1:
            return behind[0], sentence
        quietest = min(behind, key=self._heard.__getitem__)
        if (silence := max(self._heard.values()) - self._heard[quietest]) > 2 * self.lag:
            return quietest, f"{sentence}, and rank {quietest} is silent for {silence:.0f} s"
        return (None, f"{sentence}, and none shows which of them is the cause") if overdue > 2 * self.lag else None


def _describe(behind: list[int], waiting: list[int], least: int, age: float) -> str:
    where = f"inside exchange {least // 2 + 1}" if least % 2 else f"before exchange {least // 2 + 1}"
    names = f"rank {behind[0]} is" if len(behind) == 1 else f"ranks {_list(behind)} are"
    others = f", which {'rank' if len(waiting) == 1 else 'ranks'} {_list(waiting)} wait for" if waiting else ""
    return f"{names} {where} for {age:.0f} s{others}"


def _list(ranks: list[int], shown: int = 8) -> str:
    more = f" and {len(ranks) - shown} more" if len(ranks) > shown else ""
    return ", ".join(map(str, ranks[:shown])) + more
