"""Figures of one session and what follows from them: best of all samples, medians of each run, ceilings, ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.yardstick.model_bytes import ModelBytes
from benchmarks.yardstick.workload import CONTEXT, decode_cell

ROOFLINE = "roofline"


@dataclass(slots=True)
class Figure:
    """The best of everything, since noise only ever takes away; the median of each run shows how much it took."""

    best: float = 0.0
    medians: list[float] = field(default_factory=list)

    def add(self, samples: Sequence[float]) -> None:
        """The samples of one run, of which there is at least one."""
        self.best = max(self.best, *samples)
        self.medians.append(median(samples))


@dataclass(slots=True)
class SideFigures:
    """One engine at one number of threads. Cells are tokens per second, memory is bytes, times are seconds."""

    cells: dict[str, Figure] = field(default_factory=dict)
    peak_rss: int = 0
    load_s: float | None = None
    first_token_s: dict[str, float] = field(default_factory=dict)

    def add(self, answer: Mapping[str, Any]) -> None:
        """What one run of the engine answered."""
        for cell, samples in answer["samples"].items():
            self.cells.setdefault(cell, Figure()).add(samples)
        self.peak_rss = max(self.peak_rss, answer["peak_rss"])
        if "load_s" in answer:
            self.load_s = min(answer["load_s"], self.load_s or answer["load_s"])
        for length, seconds in answer.get("first_token_s", {}).items():
            self.first_token_s[length] = min(seconds, self.first_token_s.get(length, seconds))


@dataclass(slots=True)
class ThreadFigures:
    """All engines at one number of threads, and what the machine gave meanwhile: GB/s, and GFLOP/s of `matmul`."""

    threads: int
    machine: dict[str, Figure] = field(default_factory=dict)
    sides: dict[str, SideFigures] = field(default_factory=dict)
    ceilings: dict[str, dict[str, float]] = field(default_factory=dict)
    """Tokens per second by side of ours and cell, if bytes (decoding) or operations (prefill) were all that counted."""

    def best(self, side: str, cell: str) -> float | None:
        """The best of a side, None where it has no such figure."""
        figures = self.sides.get(side)
        return figures.cells[cell].best if figures and cell in figures.cells else None

    def best_peer(self, cell: str, peers: Sequence[str]) -> float | None:
        """The fastest peer's figure."""
        return max((value for peer in peers if (value := self.best(peer, cell)) is not None), default=None)

    def ratios(self, own: Sequence[str], peers: Sequence[str]) -> dict[str, dict[str, float]]:
        """By cell: each side of ours over each peer, over the best of them, and over its roofline."""
        return {cell: found for cell in self._cells() if (found := self._ratios_of(cell, own, peers))}

    def _ratios_of(self, cell: str, own: Sequence[str], peers: Sequence[str]) -> dict[str, float]:
        ratios: dict[str, float] = {}
        for side in own:
            below = {peer: self.best(peer, cell) for peer in peers}
            below |= {"best peer": self.best_peer(cell, peers), ROOFLINE: self.ceilings.get(side, {}).get(cell)}
            if (above := self.best(side, cell)) is not None:
                ratios |= {f"{side}/{name}": round(above / value, 3) for name, value in below.items() if value}
        return ratios

    def _cells(self) -> list[str]:
        return list(dict.fromkeys(cell for side in self.sides.values() for cell in side.cells))


@dataclass(slots=True)
class Results:
    """Everything that a session found. `missing` says in sentences what could not be measured, and why."""

    date: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    model: dict[str, Any]
    own: list[str]
    peers: list[str]
    threads: list[ThreadFigures] = field(default_factory=list)
    touched_experts: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, dict[str, Any]] = field(default_factory=dict)
    context_s: dict[str, float] = field(default_factory=dict)
    context_roofline_s: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """One object with figures and ratios."""
        ratios = {str(part.threads): part.ratios(self.own, self.peers) for part in self.threads}
        return {**asdict(self), "ratios_by_threads": ratios}


def decode_ceilings(sizes: ModelBytes, touched: Mapping[str, float], gigabytes_per_second: float) -> dict[str, float]:
    """Tokens per second by cell if a step took as long as reading what it must read."""
    return {
        decode_cell(int(batch)): int(batch) * gigabytes_per_second * 1e9 / sizes.step(experts, int(batch), CONTEXT)
        for batch, experts in touched.items()
    }
