"""The trained checkpoint through the runtime and through transformers: the same logits, the same text."""

from pathlib import Path

import torch
import transformers

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.weights.load import load_model
from oracle import oracle
from tutor_training.problems import held_out_problems

TUTOR = Path(__file__).resolve().parents[3] / "runtime/deepseek_runtime/tutor"


def test_the_runtime_s_logits_are_transformers_logits() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TUTOR)
    reference = oracle(TUTOR)
    model = load_model(TUTOR, join_group(), device=torch.device("cpu"), dtype=torch.float32)
    for problem in held_out_problems(3, seed=5):
        messages = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": problem.solution}]
        ids = torch.tensor(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
        cache = LatentCache.create(model.config, 20, 16, torch.device("cpu"), torch.float32)
        batch = StepBatch(ids, torch.arange(len(ids)), [len(ids)], [0], [list(range(20))])
        with torch.inference_mode():
            ours = model.logits(model.forward(batch, cache))
            theirs = reference(ids[None]).logits[0]
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
