"""What people see on stderr while nothing is measured yet, and programs whose output goes into a log."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.yardstick.errors import BenchmarkError

_LAST_LINES = 4


def say(text: str) -> None:
    """One line on stderr; stdout belongs to results."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce something that takes a while, and how long it took."""
    say(f"{title} …")
    started = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"{title}: failed after {time.monotonic() - started:.0f} s")
        raise
    say(f"{title}: done in {time.monotonic() - started:.0f} s")


def logged(command: Sequence[object], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a program to its end, appending what it writes to `log`; BenchmarkError with its last lines if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        done = subprocess.run(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    if done.returncode:
        last = " ".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
        raise BenchmarkError(f"{Path(str(command[0])).name} ended with {done.returncode}: {last} (all of it: {log})")
