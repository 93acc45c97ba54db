"""Start one measuring process on the first cores of this machine, wait for it, and take its answer and peak memory."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.yardstick.errors import BenchmarkError
from benchmarks.yardstick.places import REPOSITORY

_LAST_LINES = 3
_WORKERS = "benchmarks.yardstick.workers"
_SPAWN_OPTIONS: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True, "cwd": REPOSITORY}


@dataclass(frozen=True, slots=True)
class Cores:
    """How many threads a process may use; it is pinned to as many cores."""

    threads: int

    @property
    def numbers(self) -> list[int]:
        """The first of those that this process may use."""
        return sorted(os.sched_getaffinity(0))[: self.threads]

    @property
    def environment(self) -> dict[str, str]:
        """What tells every library of it, and keeps all of them from the network."""
        count = str(self.threads)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        path = os.pathsep.join([str(REPOSITORY / "runtime"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, **threads, **offline, "PYTHONPATH": path.rstrip(os.pathsep)}

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Children started inside inherit the pinning; this process gets its cores back."""
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.numbers)
        try:
            yield
        finally:
            os.sched_setaffinity(0, own)


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended well: what it wrote to stdout, and the most memory it held at once."""

    stdout: str
    peak_rss: int


def run(command: Sequence[object], cores: Cores, timeout: float, environment: Mapping[str, str]) -> Finished:
    """Run a program to its end; BenchmarkError with its last words where it fails or takes longer than `timeout` s."""
    name = " ".join(map(str, command[:3]))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with cores.pinned():
            child = subprocess.Popen(
                list(map(str, command)),
                stdout=out,
                stderr=err,
                env={**cores.environment, **environment},
                **_SPAWN_OPTIONS,
            )
        status, peak_rss = _reap(child, timeout)
        if status != 0:
            reason = f"took longer than {timeout:.0f} s" if status is None else f"ended with {status}"
            raise BenchmarkError(f"{name} {reason}: {_last_words(err)}")
        out.seek(0)
        return Finished(out.read(), peak_rss)


def measure(
    worker: str,
    task: Mapping[str, Any],
    cores: Cores,
    *,
    launcher: Sequence[object] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
    timeout: float = 900.0,
) -> dict[str, Any]:
    """Run a worker of this package; its answer, with `peak_rss` in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answer.json")
        command = [*launcher, "-m", f"{_WORKERS}.{worker}", json.dumps(task), file]
        finished = run(command, cores, timeout, environment or {})
        if not file.exists():
            raise BenchmarkError(f"{worker} ended well but left no answer")
        answer: dict[str, Any] = json.loads(file.read_text())
    return {"peak_rss": finished.peak_rss, **answer}


def _reap(child: subprocess.Popen[bytes], timeout: float) -> tuple[int | None, int]:
    """Exit status, None after a timeout, and peak memory in bytes; nothing of its session is left behind."""
    timed_out = False

    def on_alarm(*_: object) -> None:
        nonlocal timed_out
        timed_out = True
        os.killpg(child.pid, signal.SIGKILL)

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    child.returncode = os.waitstatus_to_exitcode(status)
    return None if timed_out else child.returncode, usage.ru_maxrss * 1024


def _last_words(stderr: IO[str]) -> str:
    stderr.seek(0)
    lines = [line.strip() for line in stderr.read().splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:])[-600:] or "it wrote nothing to stderr"
