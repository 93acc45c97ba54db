"""What the engines that are timed have in common: made ready once, then run again and again in new processes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from benchmarks.yardstick.launch import Cores
from benchmarks.yardstick.workload import Workload

Answer = dict[str, Any]
"""`samples` by cell in tokens per second, `peak_rss` in bytes, and what else the side tells."""

TIMEOUT = 900.0
"""Seconds for one run of one engine."""


class Side(Protocol):
    """An engine to time."""

    @property
    def name(self) -> str:
        """As in options and JSON."""
        ...

    @property
    def title(self) -> str:
        """As in tables."""
        ...

    def prepare(self) -> None:
        """Build, install or convert what is missing; BenchmarkError where this machine cannot have it."""
        ...

    def run(self, workload: Workload, cores: Cores) -> Answer:
        """Start it, measure every cell, end it."""
        ...


def engine_task(folder: Path, workload: Workload) -> dict[str, Any]:
    """What a worker that times an engine must know."""
    return {"checkpoint": str(folder), "dtype": "bfloat16", "workload": asdict(workload)}
