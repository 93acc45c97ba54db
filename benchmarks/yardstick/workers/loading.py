"""Loading against plain sequential reads of the same files, and the memory that it takes.

From the disk the yardstick is a read through one small buffer, which the disk bounds. From the page cache that would
measure the processor's caches, since no byte has to stay: there it is a read into memory as large as the files.
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


def evict(files: list[Path]) -> None:
    """Ask the kernel to forget the files' pages; it keeps those that another process has mapped."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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


def main() -> None:
    """Load once for the memory, then read and load in turns."""
    task = read_task()
    folder = Path(task["checkpoint"])
    files = sorted(folder.glob("*.safetensors"))
    group = join_group("cpu")
    summaries: list[LoadSummary] = []

    def load() -> int:
        dtype = getattr(torch, task["dtype"])
        options: dict[str, Any] = {"residency": task["weights"], "on_loaded": summaries.append}
        load_model(folder, group, device=group.device, dtype=dtype, **options)
        return summaries[-1].read

    before = peak_rss()
    load()
    loaded = peak_rss()
    result: dict[str, Any] = {name: [] for name in ("read_disk", "load_disk", "read_cache", "load_cache")}
    for _ in range(task["times"]):
        for name, plain in (("disk", read), ("cache", keep)):
            for verb, work in (("read", partial(plain, files)), ("load", load)):
                if name == "disk":
                    evict(files)
                result[f"{verb}_{name}"].append(speed(work))
    held = summaries[-1].held
    answer({**result, "bytes_held": held, "rss_before_load": before, "rss_loaded": loaded})


if __name__ == "__main__":
    main()
