"""The server as a user starts it: real processes under torchrun, and a client of rank 0."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep

import httpx

READY_WITHIN = 240


@contextmanager
def served(folder: Path, *flags: str, ranks: int = 1) -> Iterator[httpx.Client]:
    """A server of the model `test` that is ready; it is drained at the end."""
    port, health_port = free_port(), free_port()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*torchrun, "-m", "deepseek_runtime.serve", "--model", str(folder), "--served-model-name", "test"]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--health-port",
        str(health_port),
        "--device",
        "cpu",
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with TemporaryFile("w+") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            _wait_ready(process, f"http://127.0.0.1:{health_port}/readyz")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                yield client
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = monotonic() + READY_WITHIN
    while not _is_ready(url):
        assert process.poll() is None, "the server ended before it was ready"
        assert monotonic() < deadline, f"the server was not ready within {READY_WITHIN} s"
        sleep(0.05)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
