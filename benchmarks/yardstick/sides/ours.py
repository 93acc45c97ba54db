"""This runtime."""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.yardstick import checkpoint
from benchmarks.yardstick.launch import Cores, measure
from benchmarks.yardstick.sides.side import TIMEOUT, Answer, engine_task
from benchmarks.yardstick.workload import Workload
from deepseek_runtime.settings import OPENMP


@dataclass(frozen=True, slots=True)
class Ours:
    """The runtime with the settings that `serve` has, drafts off: random weights foresee nothing."""

    name: str = "ours"
    title: str = "ours"
    fp8: bool = False

    def prepare(self) -> None:
        self.folder()

    def folder(self) -> Path:
        """Its checkpoint."""
        return checkpoint.fp8_checkpoint() if self.fp8 else checkpoint.bf16_checkpoint()

    def run(self, workload: Workload, cores: Cores, ranks: int = 1) -> Answer:
        """With several ranks, a thread each."""
        settings = {"speculative_tokens": 0, "weights": "fp8" if self.fp8 else "auto"}
        task = engine_task(self.folder(), workload) | {"settings": settings}
        environment = dict(OPENMP)  # as serve sets it
        if ranks == 1:
            return measure("ours", task, cores, environment=environment, timeout=TIMEOUT)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment |= {"OMP_NUM_THREADS": "1"}
        return measure("ours", task, cores, launcher=torchrun, environment=environment, timeout=TIMEOUT)
