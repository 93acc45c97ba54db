"""The cost of one more token behind contexts of growing length, over a cache that is filled with noise at once.

Reading 32,768 tokens first would take minutes and change nothing: attention costs the same whatever the latents say.
"""

import time
from pathlib import Path

import torch

from benchmarks.yardstick.workers.protocol import answer, read_task
from benchmarks.yardstick.workload import STEPS
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights.load import load_model

_BLOCK = 64


def decode(model: DeepSeekV3Model, cache: LatentCache, context: int) -> None:
    """One greedy step of one sequence with `context` tokens in the cache."""
    batch = StepBatch(
        token_ids=torch.tensor([17]),
        positions=torch.tensor([context]),
        query_lens=[1],
        context_lens=[context],
        block_tables=[list(range(cache.num_blocks))],
    )
    model.logits(model.forward(batch, cache)).argmax(-1)


def seconds_per_token(model: DeepSeekV3Model, cache: LatentCache, context: int, samples: int) -> list[float]:
    """Each sample is the mean of some steps."""
    decode(model, cache, context)
    values = []
    for _ in range(samples):
        started = time.perf_counter()
        for _ in range(STEPS):
            decode(model, cache, context)
        values.append((time.perf_counter() - started) / STEPS)
    return values


def main() -> None:
    """Measure every length, the shortest first."""
    task = read_task()
    group = join_group("cpu")
    dtype = getattr(torch, task["dtype"])
    model = load_model(Path(task["checkpoint"]), group, device=group.device, dtype=dtype)
    cache = LatentCache.create(model.config, max(task["contexts"]) // _BLOCK + 1, _BLOCK, group.device, dtype)
    cache.values.normal_()
    answer({str(n): seconds_per_token(model, cache, n, task["samples"]) for n in task["contexts"]})


if __name__ == "__main__":
    main()
