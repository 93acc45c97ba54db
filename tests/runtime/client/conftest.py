"""A real server over the tutor, in a process of its own, and the commands against it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from deepseek_runtime.settings import checkpoint_folder
from serving import served

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Base URL of a server of the model `test`."""
    with served(checkpoint_folder("tutor"), "--max-running", "8", "--max-queued", "8") as client:
        yield f"{client.base_url}/v1"


@pytest.fixture
def dsv3(url: str) -> Command:
    """Runs `dsv3` with the server's address in the environment."""

    def run(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deepseek_runtime.cli", *arguments],
            input=given,
            env={**os.environ, "COLUMNS": "200", "OPENAI_BASE_URL": url, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
