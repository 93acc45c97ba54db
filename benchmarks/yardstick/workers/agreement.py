"""Whether the timed thing is the right thing: ours and transformers in float32 on one prompt, and what BF16 costs each.

In BF16 a random model of twelve layers is chaotic, since a flipped choice of an expert changes everything behind it: so
only float32 decides, and the error in BF16 is reported for both.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.yardstick.workers import hugging_face
from benchmarks.yardstick.workers.protocol import answer, read_task
from benchmarks.yardstick.workload import prompts
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.weights.load import load_model

_PROMPT_TOKENS = 40
_BLOCK = 64


def ours(folder: Path, tokens: list[int], dtype: torch.dtype) -> Tensor:
    """Logits [T, V] of the runtime."""
    group = join_group("cpu")
    model = load_model(folder, group, device=group.device, dtype=dtype)
    batch = StepBatch(torch.tensor(tokens), torch.arange(len(tokens)), [len(tokens)], [0], [[0]])
    return model.logits(model.forward(batch, LatentCache.create(model.config, 1, _BLOCK, group.device, dtype)))


@torch.inference_mode()
def theirs(folder: Path, tokens: list[int], dtype: torch.dtype) -> Tensor:
    """Logits [T, V] of transformers."""
    logits: Tensor = hugging_face.load(str(folder), dtype)(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits.float()


def main() -> None:
    """Compare; differences are relative to the standard deviation of the logits."""
    task = read_task()
    folder = Path(task["checkpoint"])
    (tokens,) = prompts(1, _PROMPT_TOKENS, task["vocab_size"], "agreement")
    truth = theirs(folder, tokens, torch.float32)
    own = ours(folder, tokens, torch.float32)
    half = {"ours": ours(folder, tokens, torch.bfloat16), "hf": theirs(folder, tokens, torch.bfloat16)}
    scale = truth.std()
    answer(
        {
            "prompt_tokens": _PROMPT_TOKENS,
            "float32_max_difference": float((own - truth).abs().max() / scale),
            "float32_same_best_token": float((own.argmax(-1) == truth.argmax(-1)).double().mean()),
            "bfloat16_mean_error": {side: float((value - truth).abs().mean() / scale) for side, value in half.items()},
        }
    )


if __name__ == "__main__":
    main()
