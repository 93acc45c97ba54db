"""From logits to tokens, each row by its own sequence's parameters.

The random number of a token depends on the request's seed and the token's index alone, so neither the rest of the batch
nor a preemption changes what a seeded request says. Log-probabilities are the model's own: before penalties,
temperature and filters.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.engine.sequence import Sequence


@torch.inference_mode()
def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[Sampled]:
    """Choose the next token of each sequence from its row of `logits` [N, V] float32."""
    scores = _penalise(logits, sequences)
    tokens = scores.argmax(dim=-1)
    drawn = [row for row, sequence in enumerate(sequences) if sequence.params.temperature > 0]
    if drawn:
        tokens[drawn] = _draw(scores[drawn], [sequences[row] for row in drawn])
    return _report(logits, tokens, sequences)


def _penalise(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    if not any(sequence.params.penalised or sequence.params.min_tokens for sequence in sequences):
        return logits
    scores = logits.clone()
    for row, sequence in zip(scores, sequences, strict=True):
        if sequence.params.penalised:
            _penalise_row(row, sequence)
        if len(sequence.generated) < sequence.params.min_tokens:
            row[list(sequence.params.stop_token_ids)] = -torch.inf
    return scores


def _penalise_row(row: Tensor, sequence: Sequence) -> None:
    """Repetition counts prompt and output and scales; presence and frequency count the output and subtract."""
    params = sequence.params
    seen = torch.tensor(sorted({*sequence.prompt, *sequence.generated}), device=row.device)
    values = row[seen]
    factor = params.repetition_penalty
    row[seen] = torch.where(values > 0, values / factor, values * factor)
    if counts := Counter(sequence.generated):
        tokens = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[tokens] -= params.presence_penalty + params.frequency_penalty * times


def _draw(scores: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """One token per row, by inverting the cumulative distribution over the tokens that the filters keep."""
    params = [sequence.params for sequence in sequences]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=scores.device).unsqueeze(1)

    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = ((ordered - ordered[:, :1]) / column([p.temperature for p in params])).softmax(dim=-1)
    likeliest = probabilities[:, :1].clone()
    rank = torch.arange(scores.shape[1], device=scores.device)
    kept = rank < column([p.top_k or scores.shape[1] for p in params])
    kept &= probabilities >= column([p.min_p for p in params]) * likeliest
    probabilities = probabilities * kept
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    kept &= probabilities.cumsum(dim=-1) - probabilities < column([p.top_p for p in params])
    kept[:, 0] = True
    cumulative = (probabilities * kept).cumsum(dim=-1)
    target = column([_uniform(s.params.seed, len(s.generated)) for s in sequences]) * cumulative[:, -1:]
    last = kept.sum(dim=-1, keepdim=True) - 1
    choice = torch.searchsorted(cumulative, target, right=True).minimum(last)
    return ids.gather(1, choice).squeeze(1)


def _uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the two integers only."""
    return random.Random(f"{seed}:{index}").random()


def _report(logits: Tensor, tokens: Tensor, sequences: Rows[Sequence]) -> list[Sampled]:
    result = [Sampled(token) for token in tokens.tolist()]
    for row, sequence in enumerate(sequences):
        count = sequence.params.logprobs
        if count is not None:
            logprobs = logits[row].log_softmax(dim=-1)
            best = logprobs.topk(count)
            alternatives = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            token = result[row].token
            result[row] = Sampled(token, float(logprobs[token]), alternatives)
    return result
