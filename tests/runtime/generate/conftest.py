"""The program in processes of its own, as people and torchrun start it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving import free_port

ALONE = [sys.executable, "-m", "deepseek_runtime.generate"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HELP_LINE = "/clear forgets what was said, /exit or Ctrl-D ends\n"
SUMS = ("What is 12 plus 30?", "What is 50 minus 7?", "What is 123 plus 456?")


def generate(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return run([*ALONE, *arguments], given)


def run(command: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Run any command to its end, with small thread pools."""
    return subprocess.run(
        command, input=given, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


@contextmanager
def started(command: list[str], process_group: int = 0, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is left alone, in a process group of its own or another's; killed at the end if it still runs."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        env=environment(**more),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        process_group=process_group,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def two_ranks(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two ranks that talk, in the process group of the first, as a shell would start them."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [*ALONE, "--interactive", *arguments]
    with (
        started(command, RANK="0", LOCAL_RANK="0", **shared) as first,
        started(command, first.pid, RANK="1", LOCAL_RANK="1", **shared) as second,
    ):
        yield [first, second]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A file of three questions, with an empty line between them."""
    file = tmp_path / "questions.txt"
    file.write_text(f"{SUMS[0]}\n\n{SUMS[1]}\n{SUMS[2]}\n")
    return file
