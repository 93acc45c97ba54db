"""Which rank holds up the others: each counts its exchanges, rank 0 compares.

A rank that waits in an exchange looks as stuck as the one it waits for, but it has come further. Only integers and
times here, passed in: no clock, no thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType


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

    def observe(self, rank: int, count: int, now: float) -> None:
        """Take a rank's newest count."""
        if self._counts.get(rank) != count:
            self._counts[rank] = count
            self.since = now

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
