"""Loading against plain sequential reads of the same files, and the memory that it takes.

From the disk the yardstick is a read through one small buffer, which the disk bounds. From the page cache that would
measure the processor's caches, since no byte has to stay: there it is a read into memory as large as the files.
A load's speed is that of its own summary, from allocating the weights to the last byte in its place; headers, planning
and the model around the weights are in its seconds, the import of torch is in neither.
"""

import mmap
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.yardstick.workers.protocol import answer, read_task
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.weights.load import LoadSummary, load_model

_CHUNK = 2**24
_HUGE_PAGE = 2**21


def evict(files: list[Path]) -> None:
    """Ask the kernel to forget the files' pages; it keeps those that another process has mapped."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch(nbytes: int) -> None:
    """Make the host of a virtual machine back so much of its free memory.

    A host may take back what a guest has freed for seconds. To touch it then takes longer than the disk, and would be
    counted against whoever needs most new memory.
    """
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, nbytes, _HUGE_PAGE):
            memory[offset] = 1


def read(files: list[Path]) -> int:
    """Read the files from end to end through one small buffer; how many bytes that were."""
    buffer, total = bytearray(_CHUNK), 0
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                total += count
    return total


def keep(files: list[Path]) -> int:
    """Read the files into fresh memory, as loading must; how many bytes that were."""
    total = sum(file.stat().st_size for file in files)
    with mmap.mmap(-1, total) as memory, memoryview(memory) as view:
        position = 0
        for file in files:
            with file.open("rb", buffering=0) as opened:
                while count := opened.readinto(view[position : position + _CHUNK]):
                    position += count
    return total


def speed(work: Callable[[], int]) -> float:
    """GB/s (1e9 bytes) of something that says how many bytes it was."""
    started = time.perf_counter()
    nbytes = work()
    return nbytes / (time.perf_counter() - started) / 1e9


def peak_rss() -> int:
    """The most memory in bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Measurement:
    """Reads and loads a checkpoint, each time on memory that the machine has at hand."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._folder = Path(task["checkpoint"])
        self._files = sorted(self._folder.glob("*.safetensors"))
        self._group = join_group("cpu")
        self._options = {"dtype": getattr(torch, task["dtype"]), "residency": task["weights"]}
        names = ("read_disk", "load_disk", "seconds_disk", "read_cache", "load_cache")
        self.result: dict[str, list[float]] = {name: [] for name in names}

    def load(self) -> tuple[LoadSummary, float]:
        """What reading and placing took, and the seconds of everything."""
        summaries: list[LoadSummary] = []
        options = {"device": self._group.device, "on_loaded": summaries.append, **self._options}
        started = time.perf_counter()
        model = load_model(self._folder, self._group, **options)
        seconds = time.perf_counter() - started
        del model
        return summaries[0], seconds

    def from_disk(self, room: int) -> None:
        """A plain read and a load, the page cache empty each time."""
        for work in (self._read_from_disk, self._load_from_disk):
            evict(self._files)
            touch(room)
            work()

    def from_cache(self, room: int) -> None:
        """The same while the page cache has all of it."""
        touch(room)
        self.result["read_cache"].append(speed(partial(keep, self._files)))
        touch(room)
        self.result["load_cache"].append(self.load()[0].gigabytes_per_second)

    def _read_from_disk(self) -> None:
        self.result["read_disk"].append(speed(partial(read, self._files)))

    def _load_from_disk(self) -> None:
        summary, seconds = self.load()
        self.result["load_disk"].append(summary.gigabytes_per_second)
        self.result["seconds_disk"].append(seconds)


def main() -> None:
    """Load once for the memory, then read and load in turns."""
    task = read_task()
    measurement = Measurement(task)
    before = peak_rss()
    summary, _ = measurement.load()
    loaded = peak_rss()
    for _ in range(task["times"]):
        measurement.from_disk(summary.held + summary.read)
        measurement.from_cache(summary.held)
    answer({**measurement.result, "bytes_held": summary.held, "rss_before_load": before, "rss_loaded": loaded})


if __name__ == "__main__":
    main()
