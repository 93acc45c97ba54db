"""Histograms that cost a fraction of a microsecond an observation: one thread writes, any reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Tally:
    """Counts observations by size; `bounds` are the upper ends, included, of all classes but the last.

    It has no lock: whoever reads while another thread writes may miss the newest observation, never an older one.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Note that something had this size, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def cumulative(self) -> list[int]:
        """For each bound, and last for infinity, how many observations were not above it."""
        return list(accumulate(self.counts))
