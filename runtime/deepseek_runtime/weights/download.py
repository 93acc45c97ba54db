"""Fetch a checkpoint, and vouch for it: every file has the hub's hash before the marker is written.

The marker `.verified.json` comes last, by rename. Whoever finds it with the right sizes need not ask the hub again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepseek_runtime.weights.hub import DownloadError, Hub, HubFile, Snapshot

MARKER = ".verified.json"
_SCRATCH = ".cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to fetch, and where to."""

    source: str
    revision: str = "main"
    destination: Path
    workers: int = 4

    @property
    def repository(self) -> str:
        """`org/name` of an `hf://` source."""
        scheme, _, name = self.source.rpartition("://")
        if scheme not in ("hf", "") or name.count("/") != 1 or not all(name.split("/")):
            raise DownloadError(f"cannot download {self.source!r}: only hf://org/name is known here")
        return name


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is there now: the commit, and the bytes and number of its files."""

    commit: str
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


Report = Callable[[Progress], None]


def download(order: Order, hub: Hub, report: Report) -> Receipt:
    """Make the destination hold the verified checkpoint; raises DownloadError with a sentence if that cannot be.

    One process at a time works on a destination: others wait, and then find the work done.
    """
    repository = order.repository
    if receipt := read_marker(order):
        return receipt
    order.destination.mkdir(parents=True, exist_ok=True)
    with _lock(order.destination):
        if receipt := read_marker(order):
            return receipt
        shutil.rmtree(order.destination / _SCRATCH, ignore_errors=True)
        snapshot = hub.snapshot(repository, order.revision)
        _check_space(order.destination, snapshot)
        _fetch_all(order, hub, snapshot, report)
        shutil.rmtree(order.destination / _SCRATCH, ignore_errors=True)
        return _write_marker(order, snapshot)


def read_marker(order: Order) -> Receipt | None:
    """The receipt of an earlier run, if it was for the same source and every file still has its size."""
    try:
        marker: dict[str, Any] = json.loads((order.destination / MARKER).read_text())
        sizes: dict[str, int] = marker["files"]
        same = (marker["source"], marker["revision"]) == (order.source, order.revision)
        if same and all((order.destination / name).stat().st_size == size for name, size in sizes.items()):
            return Receipt(marker["commit"], sum(sizes.values()), len(sizes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _write_marker(order: Order, snapshot: Snapshot) -> Receipt:
    sizes = {file.name: file.size for file in snapshot.files}
    marker = {"source": order.source, "revision": order.revision, "commit": snapshot.commit, "files": sizes}
    draft = order.destination / f"{MARKER}.new"
    with draft.open("w") as stream:
        json.dump(marker, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(order.destination / MARKER)
    return Receipt(snapshot.commit, snapshot.size, len(sizes))


def _check_space(folder: Path, snapshot: Snapshot) -> None:
    present = sum(_size(folder / file.name) for file in snapshot.files)
    needed, free = snapshot.size - present, shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{snapshot.repository} needs {needed / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB free: "
            f"make the volume at least {(needed - free) / 1e9:.1f} GB larger"
        )


def _fetch_all(order: Order, hub: Hub, snapshot: Snapshot, report: Report) -> None:
    """Fetch and verify every file, the largest first; the first failure ends the rest."""
    done: list[HubFile] = []
    stop = threading.Event()

    def one(file: HubFile) -> None:
        if not stop.is_set():
            _fetch(hub, snapshot, file, order.destination)
            done.append(file)

    files = sorted(snapshot.files, key=lambda file: -file.size)
    with _reporting(order.destination, snapshot, done, report), ThreadPoolExecutor(order.workers) as pool:
        futures = [pool.submit(one, file) for file in files]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        stop.set()
        for future in finished:
            future.result()


def _fetch(hub: Hub, snapshot: Snapshot, file: HubFile, folder: Path) -> None:
    path = folder / file.name
    if file.matches(path):  # left by an earlier, interrupted run
        return
    path.unlink(missing_ok=True)
    hub.fetch(snapshot, file, folder)
    if not file.matches(path):
        path.unlink(missing_ok=True)
        raise DownloadError(f"{file.name} arrived with a wrong hash and was deleted: the source is corrupt", file.name)


@contextmanager
def _reporting(folder: Path, snapshot: Snapshot, done: list[HubFile], report: Report) -> Iterator[None]:
    """Reports progress every second in the background, and once at the end."""

    def look() -> None:
        finished = list(done)
        partial = sum(_size(path) for path in folder.glob(f"{_SCRATCH}/**/*.incomplete"))
        arrived = min(sum(file.size for file in finished) + partial, snapshot.size)
        report(Progress(arrived, snapshot.size, len(finished), len(snapshot.files)))

    def watch() -> None:
        while not over.wait(1.0):
            look()

    over = threading.Event()
    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. The kernel releases a dead process's lock, so that a stale one is simply taken over."""
    with (folder / ".lock").open("a+") as stream:
        if not _try_lock(stream.fileno()):
            stream.seek(0)
            _say(f"waiting for {stream.read().strip() or 'another process'}, which downloads to {folder}")
            while not _try_lock(stream.fileno()):
                time.sleep(1)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


class LineReport:
    """Progress as lines for a log, at most one every `interval` seconds and one at the end."""

    def __init__(self, interval: float = 5.0) -> None:
        self._interval = interval
        self._start = time.monotonic()
        self._next = self._start

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next and progress.files_done < progress.files_total:
            return
        self._next = now + self._interval
        share = progress.bytes_done / max(progress.bytes_total, 1)
        speed = progress.bytes_done / max(now - self._start, 1e-3) / 1e6
        _say(
            f"{progress.bytes_done / 1e6:.1f} of {progress.bytes_total / 1e6:.1f} MB ({share:.0%}), "
            f"{progress.files_done} of {progress.files_total} files, {speed:.1f} MB/s"
        )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The download Job's command; its result goes to the termination log as JSON (see docs/architecture.md)."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_runtime.weights.download", description=__doc__)
    parser.add_argument("--source", required=True, help="hf://org/name")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument("--endpoint", help="hub or mirror (default: HF_ENDPOINT, else the public hub)")
    parser.add_argument("--destination", type=Path, required=True, help="folder for the files")
    parser.add_argument("--termination-log", type=Path, help="file for the result")
    parser.add_argument("--workers", type=int, default=4, help="files at a time (default: 4)")
    parser.add_argument("--retries", type=int, default=4, help="tries after the first when the network fails")
    options = parser.parse_args(arguments)
    order = Order(
        source=options.source,
        revision=options.revision,
        destination=options.destination,
        workers=options.workers,
    )
    try:
        receipt = download(order, Hub(endpoint=options.endpoint, retries=options.retries), LineReport())
    except (DownloadError, OSError) as error:
        _finish({"error": str(error), "file": getattr(error, "file", "")}, options.termination_log)
        return 1
    _finish(asdict(receipt), options.termination_log)
    return 0


def _finish(result: dict[str, Any], log: Path | None) -> None:
    _say(json.dumps(result))
    if log:
        log.write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
