"""The program itself: one rank and two, from start to drain, and what happens when a rank dies."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from deepseek_runtime.server.local import open_local
from deepseek_runtime.settings import Settings
from fake_model import write_tokenizer
from tiny_checkpoint import v3_config, write_checkpoint

MODULE = [sys.executable, "-m", "deepseek_runtime.serve"]
BODY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tokenizer(tmp_path_factory.mktemp("tiny"))
    write_checkpoint(folder, v3_config(vocab_size=272, max_position_embeddings=4096), fp8=True)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Ranks:
    """Processes of one group, and a client of its rank 0."""

    processes: list[subprocess.Popen[str]]
    client: httpx.Client
    health_port: int

    def wait_ready(self) -> None:
        deadline = monotonic() + 90
        while self.readiness() != 200:
            assert monotonic() < deadline, "did not become ready"
            assert all(process.poll() is None for process in self.processes), self.output()
            sleep(0.05)

    def readiness(self) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.health_port}/readyz").status_code
        except httpx.TransportError:
            return 0

    def terminate(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)

    def codes(self, within: float) -> list[int]:
        deadline = monotonic() + within
        return [process.wait(max(deadline - monotonic(), 0)) for process in self.processes]

    def output(self) -> str:
        return "".join(process.communicate()[1] for process in self.processes if process.poll() is not None)


@contextmanager
def launched(commands: list[tuple[list[str], dict[str, str]]], checkpoint: Path, *more: str) -> Iterator[Ranks]:
    port, health_port = free_port(), free_port()
    flags = ["--model", str(checkpoint), "--served-model-name", "tiny", "--host", "127.0.0.1", "--device", "cpu"]
    flags += ["--port", str(port), "--health-port", str(health_port), "--drain-timeout", "30", *more]
    with ExitStack() as stack:
        processes = []
        for command, environment in commands:
            process = subprocess.Popen(
                [*command, *flags], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(stack.enter_context(process))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        yield Ranks(processes, client, health_port)


@contextmanager
def two_ranks(checkpoint: Path, *flags: str) -> Iterator[Ranks]:
    """Two processes as torchrun would start them, whose exit codes can be seen."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    commands = [(MODULE, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    with launched(commands, checkpoint, *flags) as ranks:
        ranks.wait_ready()
        yield ranks


@contextmanager
def long_stream(ranks: Ranks, **extra: Any) -> Iterator[Iterator[str]]:
    """A stream of which the first words have come."""
    with ranks.client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True, **extra}) as response:
        lines = (line for line in response.iter_lines() if line)
        for _ in range(4):
            next(lines)
        yield lines


def alone(checkpoint: Path) -> list[str]:
    """What one rank in this process says to the same messages."""
    local = open_local(Settings(model=checkpoint, served_model_name=("tiny",), device="cpu"), lambda _: None)
    try:
        return list(local.answer(BODY["messages"], max_tokens=40))
    finally:
        local.engine.stop(10)


def answer(ranks: Ranks) -> str:
    body = {key: value for key, value in BODY.items() if key != "ignore_eos"}
    response = ranks.client.post("/v1/chat/completions", json={**body, "max_tokens": 40})
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_torchrun_serves_over_two_ranks_what_one_rank_says_and_drains_on_sigterm(checkpoint: Path) -> None:
    expected = "".join(alone(checkpoint))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    with launched([([*torchrun, "deepseek_runtime.serve"], {})], checkpoint) as two:
        two.wait_ready()
        assert answer(two) == expected
        with long_stream(two, max_tokens=150) as lines:
            two.terminate()
            assert list(lines)[-1] == "data: [DONE]"
        two.codes(within=20)
        assert "exitcode" not in two.output()


def test_a_drain_finishes_streams_and_ends_every_rank_with_0(checkpoint: Path) -> None:
    with two_ranks(checkpoint) as ranks:
        with long_stream(ranks, max_tokens=300) as lines:
            ranks.terminate()
            while ranks.readiness() == 200:
                sleep(0.01)
            refused = ranks.client.post("/v1/chat/completions", json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            rest = list(lines)
        assert '"finish_reason":"length"' in rest[-2]
        assert ranks.codes(within=20) == [0, 0]
        assert "Error" not in ranks.output()


def test_what_takes_longer_than_draining_may_ends_with_an_error_and_the_group_in_peace(checkpoint: Path) -> None:
    with two_ranks(checkpoint, "--drain-timeout", "0.5") as ranks, long_stream(ranks, max_tokens=4000) as lines:
        ranks.terminate()
        last = list(lines)[-1]
        assert '"code":"draining"' in last
        assert "took longer than 0.5 s" in last
        assert ranks.codes(within=15) == [0, 0]


def test_a_second_signal_ends_every_rank_at_once(checkpoint: Path) -> None:
    with two_ranks(checkpoint) as ranks, long_stream(ranks, max_tokens=4000) as lines:
        ranks.terminate()
        while ranks.readiness() == 200:
            sleep(0.01)
        ranks.terminate()
        start = monotonic()
        assert '"error"' in list(lines)[-1]
        assert ranks.codes(within=10) == [1, 1]
        assert monotonic() - start < 2


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_rank_is_a_clean_error_and_ends_the_other(checkpoint: Path, victim: int) -> None:
    with two_ranks(checkpoint) as ranks:
        done = threading.Event()
        with long_stream(ranks, max_tokens=4000) as lines:
            ranks.processes[victim].kill()
            if victim:
                assert '"code":"group_broken"' in list(lines)[-1]
            else:
                with pytest.raises(httpx.TransportError):
                    list(lines)
            done.set()
        start = monotonic()
        assert ranks.processes[1 - victim].wait(10) == 1
        assert monotonic() - start < 4
        assert f"rank {victim} is lost" in ranks.output()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model", "/nowhere"], "no such file"),
        (["--port", "-1"], "--port must be 0 to 65535"),
        (["--max-running", "0"], "--max-running must be more than 0"),
        (["--speculative-tokens", "4"], "--speculative-tokens must be 0 to 3, not 4"),
        (["--redundant-experts", "-1"], "--redundant-experts must not be negative"),
        (["--attention", "rows"], "invalid choice"),
        (["--api-key-folder", "/nowhere"], "no such folder"),
        (["--device", "tpu"], "invalid choice"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_what_cannot_start_says_why_and_exits_2(checkpoint: Path, flags: list[str], sentence: str) -> None:
    common = ["--model", str(checkpoint), "--host", "127.0.0.1", "--port", "0", "--health-port", "0"]
    result = subprocess.run([*MODULE, *common, *flags], capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 2, result.stderr
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_and_a_damaged_checkpoint_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        common = ["--model", str(checkpoint), "--host", "127.0.0.1"]
        for flags in (["--port", port, "--health-port", "0"], ["--port", "0", "--health-port", port]):
            result = subprocess.run([*MODULE, *common, *flags], capture_output=True, text=True, check=False)
            assert result.returncode == 2
            assert f"port {port} of 127.0.0.1 cannot be used" in result.stderr
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    flags = ["--model", str(tmp_path), "--host", "127.0.0.1", "--port", "0", "--health-port", "0"]
    result = subprocess.run([*MODULE, *flags], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert shard.name in result.stderr
    assert "Traceback" not in result.stderr
