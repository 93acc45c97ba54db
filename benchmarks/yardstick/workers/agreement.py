"""Whether the timed thing is the right thing: ours and transformers in float32, and what BF16 costs each.

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

_PROMPTS, _PROMPT_TOKENS = 4, 40
_BLOCK = 64


def ours(folder: Path, texts: list[list[int]], dtype: torch.dtype) -> Tensor:
    """Logits [N, T, V] of the runtime, all prompts in one step."""
    group = join_group("cpu")
    model = load_model(folder, group, device=group.device, dtype=dtype)
    count, length = len(texts), len(texts[0])
    batch = StepBatch(
        token_ids=torch.tensor(texts).flatten(),
        positions=torch.arange(length).repeat(count),
        query_lens=[length] * count,
        context_lens=[0] * count,
        block_tables=[[number] for number in range(count)],
    )
    cache = LatentCache.create(model.config, count, _BLOCK, group.device, dtype)
    return model.logits(model.forward(batch, cache)).view(count, length, -1)


@torch.inference_mode()
def theirs(folder: Path, texts: list[list[int]], dtype: torch.dtype) -> Tensor:
    """Logits [N, T, V] of transformers, one prompt after the other."""
    model = hugging_face.load(str(folder), dtype)
    return torch.cat([model(torch.tensor([text]), use_cache=False).logits.float() for text in texts])


def main() -> None:
    """Compare; differences are relative to the standard deviation of the logits."""
    task = read_task()
    folder = Path(task["checkpoint"])
    texts = prompts(_PROMPTS, _PROMPT_TOKENS, task["vocab_size"], "agreement")
    truth = theirs(folder, texts, torch.float32)
    own = ours(folder, texts, torch.float32)
    half = {"ours": ours(folder, texts, torch.bfloat16), "hf": theirs(folder, texts, torch.bfloat16)}
    scale = truth.std()
    answer(
        {
            "prompts": _PROMPTS,
            "prompt_tokens": _PROMPT_TOKENS,
            "float32_max_difference": float((own - truth).abs().max() / scale),
            "float32_same_best_token": float((own.argmax(-1) == truth.argmax(-1)).double().mean()),
            "bfloat16_mean_error": {side: float((value - truth).abs().mean() / scale) for side, value in half.items()},
        }
    )


if __name__ == "__main__":
    main()
