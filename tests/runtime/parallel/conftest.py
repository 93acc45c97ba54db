"""Real processes over gloo, started by torchrun as pods start them, and what each of them wrote."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("rank_program.py")
Job = dict[str, Any]
RunRanks = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """What each of some ranks, on one or more nodes, made of a job, in the order of ranks."""

    def run(ranks: int, job: Job, nodes: int = 1) -> list[Any]:
        out = tmp_path_factory.mktemp("ranks")
        (out / "job.json").write_text(json.dumps(job))
        agents = [start(out, arguments) for arguments in agents_of(ranks, nodes)]
        for agent in agents:
            output = agent.communicate(timeout=240)[0]
            assert agent.returncode == 0, output[-4000:]
        return [torch.load(out / f"{rank}.pt") for rank in range(ranks)]

    return run


def agents_of(ranks: int, nodes: int) -> list[tuple[str, ...]]:
    """The arguments of each node's torchrun; a single rank needs none."""
    if ranks == 1:
        return [()]
    if nodes == 1:
        return [("--standalone", f"--nproc-per-node={ranks}")]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    common = (f"--nnodes={nodes}", f"--nproc-per-node={ranks // nodes}")
    meeting = ("--master-addr=127.0.0.1", f"--master-port={port}", "--local-addr=127.0.0.1")
    return [(*common, f"--node-rank={node}", *meeting) for node in range(nodes)]


def start(out: Path, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    """Start the job that lies in a folder: by torchrun with these arguments, or without."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = ("-m", "torch.distributed.run", *arguments) if arguments else ()
    command = [sys.executable, *torchrun, str(PROGRAM), str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Four prompts of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 200, (length,), generator=generator).tolist() for length in (43, 29, 42, 36)]
