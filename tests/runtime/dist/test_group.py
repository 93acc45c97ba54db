"""A group of two processes under torchrun with gloo: exchange, an orderly end, and a violent one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek_runtime.dist.group import Group
from deepseek_runtime.dist.init import choose_device, join_group
from deepseek_runtime.dist.topology import TopologyError

PROGRAM = Path(__file__).with_name("group_program.py")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def torchrun(mode: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, str(PROGRAM), mode, str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


@pytest.fixture
def mourners(tmp_path: Path) -> Iterator[list[int]]:
    """Process ids of two ranks that wait for a death, rank 0's first."""
    run = torchrun("mourn", tmp_path, "--nproc-per-node=2", f"--master-port={free_port()}")
    try:
        yield [wait_for(tmp_path / f"{rank}.json", "pid", run)["pid"] for rank in (0, 1)]
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def wait_for(path: Path, field: str, run: subprocess.Popen[str] | None = None, timeout: float = 240) -> dict[str, Any]:
    """The file's content once it has the field."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if path.exists() and field in (content := json.loads(path.read_text())):
            return dict(content)
        assert run is None or run.poll() is None, run.communicate()[0]
        threading.Event().wait(0.02)
    raise AssertionError(f"{path.name} has no {field!r} after {timeout} s")


def test_two_agents_form_one_group_as_two_pods_do_and_part_in_peace(tmp_path: Path) -> None:
    port = free_port()
    runs = [
        torchrun(
            *("exchange", tmp_path, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}"),
            *("--master-addr=127.0.0.1", f"--master-port={port}", "--local-addr=127.0.0.1"),
        )
        for node in (0, 1)
    ]
    for run in runs:
        output = run.communicate(timeout=240)[0]
        assert run.returncode == 0, output
    for rank in (0, 1):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["place"] == [rank, 2, 0, "cpu"]
        assert result["intact"], "every list arrives as it was sent"
        assert result["sums"] == {"torch.float32": [3.0, 1.0], "torch.bfloat16": [3.0, 1.0]}
        assert result["empty"] == [0, 4]
        assert result["idle_cpu_share"] < 0.3, "a rank that waits for a step sleeps"
        assert result["lost"] == [], "an orderly end is no death"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_noticed_while_a_collective_is_pending(
    mourners: list[int], tmp_path: Path, victim: int
) -> None:
    killed_at = time.monotonic()
    os.kill(mourners[victim], signal.SIGKILL)
    notice = wait_for(tmp_path / f"{1 - victim}.json", "lost", timeout=30)
    assert notice["lost"] == victim
    assert notice["at"] - killed_at < 5


def test_a_rank_that_does_not_join_a_collective_is_named_to_all(tmp_path: Path) -> None:
    run = torchrun("stall", tmp_path, "--nproc-per-node=2", f"--master-port={free_port()}")
    try:
        for rank in (0, 1):
            notice = wait_for(tmp_path / f"{rank}.json", "lost", run)
            assert notice["lost"] == 1
            assert re.search(r"rank 1 is before exchange 2 for \d s, which rank 0 wait", notice["reason"])
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def test_without_torchrun_a_process_is_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    group = join_group("cpu")
    assert (type(group), group.rank, group.world_size, group.device) == (Group, 0, 1, torch.device("cpu"))
    group.barrier("alone", timeout=0)
    assert group.broadcast_ints([1, 2]) == [1, 2]
    assert group.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
    group.close()


def test_ranks_that_do_not_come_are_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    port = str(free_port())
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TopologyError, match=rf"^rank 1 did not meet the 1 other rank at 127\.0\.0\.1:{port}: [^\n]+$"):
        join_group("cpu", timeout=timedelta(seconds=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu() -> None:
    assert choose_device("auto", 0) == torch.device("cpu")
