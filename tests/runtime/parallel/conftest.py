"""Real processes over gloo, started by torchrun as pods start them, and what each of them wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("rank_program.py")
Job = dict[str, Any]
RunRanks = Callable[[int, Job], list[Any]]


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a job that lies in a folder: one rank by itself, or torchrun with these arguments."""

    def start_program(out: Path, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        torchrun = ("-m", "torch.distributed.run", *arguments) if arguments else ()
        command = [sys.executable, *torchrun, str(PROGRAM), str(out)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start_program


@pytest.fixture(scope="session")
def run_ranks(start: Callable[..., subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """What each of some ranks made of a job, in the order of ranks."""

    def run(ranks: int, job: Job) -> list[Any]:
        out = tmp_path_factory.mktemp("ranks")
        (out / "job.json").write_text(json.dumps(job))
        process = start(out, *(("--standalone", f"--nproc-per-node={ranks}") if ranks > 1 else ()))
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output[-4000:]
        return [torch.load(out / f"{rank}.pt") for rank in range(ranks)]

    return run


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Four prompts of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 200, (length,), generator=generator).tolist() for length in (43, 29, 42, 36)]
