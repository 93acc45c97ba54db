"""A group under torchrun that a test may break and start again: same command, same ports, as the kubelet does it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx

from serving import READY_WITHIN, free_port


class GroupProcess:
    """Two ranks or more; the access log and all else that the last start wrote lie in `folder`."""

    def __init__(self, folder: Path, model: Path, *flags: str, ranks: int = 2) -> None:
        self._stdout, self._stderr = folder / "access.log", folder / "errors.log"
        port, health_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._readiness = f"http://127.0.0.1:{health_port}/readyz"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        self._command = [*torchrun, "-m", "deepseek_runtime.serve", "--model", str(model), *flags]
        self._command += ["--served-model-name", "test", "--host", "127.0.0.1", "--device", "cpu"]
        self._command += ["--port", str(port), "--health-port", str(health_port)]
        self.start()

    def start(self) -> None:
        """Run the command, and wait until the group is ready."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(self._command, env=environment, stdout=stdout, stderr=stderr)
        deadline = monotonic() + READY_WITHIN
        while not self._ready():
            assert self.process.poll() is None, f"it ended before it was ready:\n{self.errors()}"
            assert monotonic() < deadline, f"it is not ready after {READY_WITHIN} s:\n{self.errors()}"
            sleep(0.05)
        self.rank_pids = self._find_ranks()

    def stop(self) -> None:
        """Drain and end it, if it still runs."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def serves(self) -> bool:
        """Whether rank 0 still lives, zombies not counted."""
        try:
            return Path(f"/proc/{self.rank_pids[0]}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def errors(self) -> str:
        """The end of what it said to standard error."""
        return self._stderr.read_text(errors="replace")[-8000:]

    def access_log(self) -> list[dict[str, Any]]:
        """Its lines about requests, oldest first."""
        return [json.loads(line) for line in self._stdout.read_text().splitlines() if line.startswith("{")]

    def metrics(self) -> dict[str, float]:
        """All samples by their whole names."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def _ready(self) -> bool:
        try:
            return httpx.get(self._readiness).status_code == 200
        except httpx.TransportError:
            return False

    def _find_ranks(self) -> dict[int, int]:
        """Process ids by rank: torchrun's children, by the RANK that it gave them."""
        pids: dict[int, int] = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for pid in map(int, (task / "children").read_text().split()):
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                pids |= {int(entry[5:]): pid for entry in environment if entry.startswith(b"RANK=")}
        return pids
