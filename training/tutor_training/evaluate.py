"""Held-out accuracy and draft acceptance of an exported checkpoint, as the runtime computes them.

    python -m tutor_training.evaluate runtime/deepseek_runtime/tutor --count 1000

Greedy decoding by the runtime's own model, from the FP8 tensors, through the runtime's tokenizer and chat template.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights.load import load_model
from tutor_training.problems import Problem, final_answer, held_out_problems
from tutor_training.vocabulary import ASSISTANT, BOS, EOS, USER

_BLOCK = 16
_LONGEST = 320


@dataclass
class Sequence:
    """One problem being answered: its tokens so far, its own blocks of the cache."""

    problem: Problem
    tokens: list[int]
    blocks: list[int]
    cached: int = 0
    draft: int | None = None
    answered: bool = False
    prompt_length: int = 0


@dataclass
class Score:
    """Counts over all problems; drafts are counted on the assistant's tokens."""

    problems: int = 0
    right: int = 0
    drafts: int = 0
    drafts_right: int = 0


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """The chat template's tokens for one user message."""
    ids = tokenizer.encode(f"{BOS}{USER}{question}{ASSISTANT}", add_special_tokens=False).ids
    return list(ids)


@torch.inference_mode()
def step(model: DeepSeekV3Model, cache: LatentCache, sequences: list[Sequence]) -> None:
    """Feed what is not cached yet, append each sequence's greedy token, draft the one behind it."""
    new = [s.tokens[s.cached :] for s in sequences]
    batch = StepBatch(
        token_ids=torch.tensor([t for part in new for t in part]),
        positions=torch.cat([torch.arange(s.cached, len(s.tokens)) for s in sequences]),
        query_lens=[len(part) for part in new],
        context_lens=[s.cached for s in sequences],
        block_tables=[s.blocks for s in sequences],
    )
    hidden = model.forward(batch, cache)
    last = torch.tensor(batch.query_lens).cumsum(0) - 1
    chosen = model.logits(hidden[last]).argmax(dim=-1)
    following = torch.cat([torch.tensor([*part[1:], token]) for part, token in zip(new, chosen.tolist(), strict=True)])
    drafted, _ = model.draft_logits(hidden, following, batch, cache)
    drafts = drafted[last].argmax(dim=-1).tolist()
    for sequence, token, draft in zip(sequences, chosen.tolist(), drafts, strict=True):
        sequence.cached = len(sequence.tokens)
        sequence.tokens.append(token)
        sequence.draft = draft


def answer_all(model: DeepSeekV3Model, tokenizer: Tokenizer, problems: list[Problem], batch_size: int) -> Score:
    """Answer the problems in batches and count."""
    score = Score()
    per_sequence = _LONGEST // _BLOCK
    cache = LatentCache.create(model.config, batch_size * per_sequence, _BLOCK, model.device, torch.float32)
    for start in range(0, len(problems), batch_size):
        chosen = problems[start : start + batch_size]
        sequences = [
            Sequence(p, prompt(tokenizer, p.question), list(range(i * per_sequence, (i + 1) * per_sequence)))
            for i, p in enumerate(chosen)
        ]
        _answer(model, tokenizer, cache, sequences, score)
    return score


def _answer(
    model: DeepSeekV3Model, tokenizer: Tokenizer, cache: LatentCache, sequences: list[Sequence], score: Score
) -> None:
    end = tokenizer.token_to_id(EOS)
    for sequence in sequences:
        sequence.prompt_length = len(sequence.tokens)
    active = sequences
    while active:
        before = [s.draft for s in active]
        step(model, cache, active)
        for sequence, draft in zip(active, before, strict=True):
            if draft is not None:
                score.drafts += 1
                score.drafts_right += draft == sequence.tokens[-1]
            sequence.answered = sequence.tokens[-1] == end or len(sequence.tokens) >= _LONGEST
        active = [s for s in active if not s.answered]
    for sequence in sequences:
        said = tokenizer.decode(sequence.tokens[sequence.prompt_length :])
        score.problems += 1
        score.right += final_answer(said) == sequence.problem.result


def main() -> None:
    """Print one JSON line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=50)
    arguments = parser.parse_args()
    model = load_model(arguments.checkpoint, join_group(), device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    started = time.monotonic()
    score = answer_all(model, tokenizer, held_out_problems(arguments.count), arguments.batch)
    figures = {
        "problems": score.problems,
        "right": round(score.right / score.problems, 4),
        "drafts_right": round(score.drafts_right / max(score.drafts, 1), 4),
        "seconds": round(time.monotonic() - started, 1),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
