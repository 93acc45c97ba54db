"""Decoding speed of the tutor against transformers, both in float32 on one thread, in turns in one process.

    OMP_NUM_THREADS=1 python benchmarks/decode.py

The ratio is the result; the tokens per second depend on the machine and the moment. Both write the same greedy text,
which is checked. transformers holds plain float32 weights, the runtime dequantises its FP8 blocks at each use.
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "training"), str(REPOSITORY / "tests/support")]

from tokenizers import Tokenizer

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights.load import load_model
from oracle import oracle
from tutor_training.evaluate import prompt
from tutor_training.problems import Problem

TUTOR = REPOSITORY / "runtime/deepseek_runtime/tutor"
NEW_TOKENS = 48
ROUNDS = 5
BLOCK = 16


def prompts(tokenizer: Tokenizer, count: int) -> torch.Tensor:
    """`count` prompts of equal length [count, L]: no padding, so that both sides do the same work."""
    problems = [Problem(7_000 + 13 * i, "-", 2_000 + 7 * i, "en") for i in range(count)]
    return torch.tensor([prompt(tokenizer, p.question) for p in problems])


@torch.inference_mode()
def ours(model: DeepSeekV3Model, ids: torch.Tensor) -> torch.Tensor:
    """Greedy tokens [B, NEW_TOKENS] by the runtime's model."""
    count, length = ids.shape
    per_sequence = -(-(length + NEW_TOKENS) // BLOCK)
    cache = LatentCache.create(model.config, count * per_sequence, BLOCK, model.device, model.dtype)
    tables = [list(range(i * per_sequence, (i + 1) * per_sequence)) for i in range(count)]
    new, cached, out = ids, 0, []
    for _ in range(NEW_TOKENS):
        size = new.shape[1]
        positions = torch.arange(cached, cached + size).repeat(count)
        hidden = model.forward(StepBatch(new.flatten(), positions, [size] * count, [cached] * count, tables), cache)
        chosen = model.logits(hidden.view(count, size, -1)[:, -1]).argmax(-1)
        out.append(chosen)
        cached, new = cached + size, chosen[:, None]
    return torch.stack(out, dim=1)


@torch.inference_mode()
def theirs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The same by transformers' own generate."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 2}
    written: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
    return written[:, ids.shape[1] :]


def main() -> None:
    """Print a table: batch, tokens per second of both (best of the rounds), ratio."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(TUTOR / "tokenizer.json"))
    model = load_model(TUTOR, join_group(), device=torch.device("cpu"), dtype=torch.float32)
    reference = oracle(TUTOR)
    sys.stdout.write("| batch | runtime tok/s | transformers tok/s | ratio |\n|---|---|---|---|\n")
    for count in (1, 4, 16):
        ids = prompts(tokenizer, count)
        first = ours(model, ids)
        assert torch.equal(first[:, :40], theirs(reference, ids)[:, :40]), "the two sides wrote different text"
        best = [0.0, 0.0]
        for _ in range(ROUNDS):
            for side, run in enumerate((partial(ours, model), partial(theirs, reference))):
                started = time.perf_counter()
                run(ids)
                best[side] = max(best[side], count * NEW_TOKENS / (time.perf_counter() - started))
        sys.stdout.write(f"| {count} | {best[0]:.0f} | {best[1]:.0f} | {best[0] / best[1]:.2f} |\n")


if __name__ == "__main__":
    main()
