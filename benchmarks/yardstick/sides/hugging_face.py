"""transformers."""

from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.yardstick import checkpoint
from benchmarks.yardstick.errors import BenchmarkError
from benchmarks.yardstick.launch import Cores, measure
from benchmarks.yardstick.sides.side import TIMEOUT, Answer, engine_task
from benchmarks.yardstick.workload import Workload


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """transformers, from the environment that runs this."""

    name: str = "hf"
    title: str = "transformers"

    def prepare(self) -> None:
        if find_spec("transformers") is None:
            raise BenchmarkError("transformers is not installed here: make bench installs it into .venv")
        checkpoint.bf16_checkpoint()

    def run(self, workload: Workload, cores: Cores) -> Answer:
        return measure("hugging_face", engine_task(checkpoint.bf16_checkpoint(), workload), cores, timeout=TIMEOUT)
