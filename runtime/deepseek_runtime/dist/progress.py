"""Which rank holds up the others: each counts its exchanges, rank 0 compares.

A rank that waits in an exchange looks as stuck as the one it waits for, but it has come further. Only integers and
times here, passed in: no clock, no thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

from deepseek_runtime.health import Suspect


class Progress:
    """Counts up when this rank enters an exchange with the others and when it leaves it: odd inside, even outside."""

    def __init__(self) -> None:
        self.count = 0

    def enter(self) -> None:
        self.count += 1

    def leave(self) -> None:
        self.count += 1

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()


@dataclass(slots=True)
class StallWatch:
    """Judges the counts of all `ranks`; times are in seconds of one clock, `limit` is how long nothing may change."""

    ranks: int
    limit: float
    since: float
    _counts: dict[int, int] = field(default_factory=dict)
    _changed: dict[int, float] = field(default_factory=dict)

    def observe(self, rank: int, count: int, now: float) -> None:
        """Take a rank's newest count."""
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

    def verdict(self, now: float) -> tuple[int, str] | None:
        """The rank that stalls and a sentence about it, once no count has changed for longer than the limit."""
        if len(self._counts) < self.ranks or now - self.since <= self.limit:
            return None
        least = min(self._counts.values())
        behind = sorted(rank for rank, count in self._counts.items() if count == least)
        waiting = sorted(set(self._counts) - set(behind))
        return behind[0], f"it stalls: {_describe(behind, waiting, least, now - self.since)}"


def _describe(behind: list[int], waiting: list[int], least: int, age: float) -> str:
    where = f"inside exchange {least // 2 + 1}" if least % 2 else f"before exchange {least // 2 + 1}"
    names = f"rank {behind[0]} is" if len(behind) == 1 else f"ranks {_list(behind)} are"
    others = f", which {'rank' if len(waiting) == 1 else 'ranks'} {_list(waiting)} wait for" if waiting else ""
    return f"{names} {where} for {age:.0f} s{others}"


def _list(ranks: list[int], shown: int = 8) -> str:
    more = f" and {len(ranks) - shown} more" if len(ranks) > shown else ""
    return ", ".join(map(str, ranks[:shown])) + more
