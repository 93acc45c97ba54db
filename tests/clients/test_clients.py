"""Runs every client in this folder against the tutor on two ranks, and looks whether they left something behind."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepseek_runtime.settings import checkpoint_folder
from serving import served

HERE = Path(__file__).parent
CLIENTS = sorted(path for path in HERE.iterdir() if path.suffix in (".py", ".sh") and not path.name.startswith("test_"))
NEEDED = {".sh": "curl", "node_wrapper.py": "npm"}
FIREWORKS = "accounts/fireworks/models/deepseek-v3"


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    options = ("--served-model-name", FIREWORKS, "--max-running", "16", "--max-queued", "16")
    with served(checkpoint_folder("tutor"), *options, ranks=2) as client:
        yield client


@pytest.mark.parametrize("program", CLIENTS, ids=lambda path: path.stem)
def test_client(server: httpx.Client, program: Path) -> None:
    need(NEEDED.get(program.name) or NEEDED.get(program.suffix))
    command = ["bash", str(program)] if program.suffix == ".sh" else [sys.executable, str(program)]
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.base_url}/v1", "OPENAI_API_KEY": "none"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert leftovers(server) == {}


def need(program: str | None) -> None:
    if program and shutil.which(program) is None:
        missing = f"needs {program}"
        pytest.fail(missing, pytrace=False) if os.environ.get("CI") else pytest.skip(missing)


def leftovers(server: httpx.Client) -> dict[str, float]:
    """What still runs, waits or holds cache a moment after the client ended."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    deadline = time.monotonic() + 5
    while True:
        lines = server.get("/metrics").text.splitlines()
        values = {name: float(line.split()[-1]) for line in lines for name in names if line.startswith(name + "{")}
        assert len(values) == len(names)
        left = {name: value for name, value in values.items() if value}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)
