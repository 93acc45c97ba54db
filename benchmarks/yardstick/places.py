"""Where checkpoints and peers are kept between runs: a cache folder outside of the repository."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.yardstick.console import say
from benchmarks.yardstick.errors import BenchmarkError

REPOSITORY = Path(__file__).resolve().parents[2]


def cache_folder() -> Path:
    """`dsv3-bench` in the user's cache folder, made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "dsv3-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_disk(folder: Path, gigabytes: float, purpose: str) -> None:
    """Raise unless the file system of `folder` has `gigabytes` (of 1e9 bytes) free."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise BenchmarkError(
            f"{purpose} needs {gigabytes:.0f} GB free under {folder}, and there are {free:.1f} GB: "
            "free some, or point XDG_CACHE_HOME to a larger disk"
        )


@contextmanager
def making(target: Path, fingerprint: str) -> Iterator[bool]:
    """Whether `target` must be made; its stamp is written when the block ends well. Two runs make it one by one.

    with making(folder, version) as missing:
        if missing: …
    """
    stamp, lock = (target.with_name(f"{target.name}.{suffix}") for suffix in ("stamp", "lock"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another run that makes {target} …")
            fcntl.flock(held, fcntl.LOCK_EX)
        missing = not (target.exists() and stamp.exists() and stamp.read_text() == fingerprint)
        yield missing
        if missing:
            stamp.write_text(fingerprint)
