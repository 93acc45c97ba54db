"""From logits to tokens, each row by its own request's parameters.

The random number of a token depends on the request's seed and the token's index alone, so neither the rest of the batch
nor a preemption nor speculation changes what a seeded request says. Log-probabilities are the model's own: before
grammar, bias, penalties, temperature and filters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from deepseek_runtime.engine.adjust import Context, adjust
from deepseek_runtime.engine.sampling import NumericsError, Sampled

CANDIDATES = 1024
"""Likeliest tokens among which filters look first; the rare draw that keeps more sorts the whole vocabulary."""


@torch.inference_mode()
def choose(logits: Tensor, contexts: Rows[Context]) -> list[int]:
    """The token of each row of `logits` [N, V] float32.

    NumericsError where the model's own logits are no numbers; whatever a request makes of its row, a token comes of it.
    """
    tokens = likeliest(logits)
    _check(logits.gather(1, tokens.unsqueeze(1)), contexts)
    scores = logits
    if adjusted := [row for row, context in enumerate(contexts) if context.adjusts]:
        scores = adjust(logits, contexts)
        tokens[adjusted] = likeliest(take(scores, adjusted))
    for filtered, draw in ((False, _draw), (True, _draw_filtered)):
        rows = [row for row, c in enumerate(contexts) if not c.params.greedy and c.params.filtered is filtered]
        if rows:
            theirs = take(scores, rows)
            tokens[rows] = _possible(draw(theirs, [contexts[row] for row in rows]), tokens[rows], theirs)
    chosen: list[int] = tokens.tolist()
    return chosen


@torch.inference_mode()
def report(logits: Tensor, rows: Rows[int], tokens: Rows[int], contexts: Rows[Context]) -> list[Sampled]:
    """The chosen tokens of some `rows`, with what their requests want to know; all else is as for `choose`."""
    result = {row: Sampled(tokens[row]) for row in rows}
    counts = {row: count for row in rows if (count := contexts[row].params.logprobs) is not None}
    if counts:
        logprobs = take(logits, list(counts)).log_softmax(dim=-1)
        best = logprobs.topk(max(counts.values()))
        for index, (row, count) in enumerate(counts.items()):
            ids, values = best.indices[index, :count].tolist(), best.values[index, :count].tolist()
            own = float(logprobs[index, tokens[row]])
            result[row] = Sampled(tokens[row], own, tuple(zip(ids, values, strict=True)))
    return list(result.values())


def likeliest(scores: Tensor) -> Tensor:
    """The id [N] of the largest of each row's scores, the first if there are several; NaN counts as largest."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(axis=-1))  # torch's own takes ten times as long here
    return scores.argmax(dim=-1)


def take(logits: Tensor, rows: list[int]) -> Tensor:
    """The given rows, in ascending order; without a copy where that is all of them."""
    return logits if len(rows) == len(logits) else logits[rows]


def _possible(drawn_N: Tensor, best_N: Tensor, scores: Tensor) -> Tensor:
    """What was drawn, or the best token where that has no chance: a GPU sums in parallel, and its cumulative sums may
    differ by a rounding where a weight is 0."""
    return torch.where(scores.gather(1, drawn_N.unsqueeze(1)).squeeze(1).isfinite(), drawn_N, best_N)


def _check(best_N1: Tensor, contexts: Rows[Context]) -> None:
    finite = best_N1.isfinite()
    if not finite.all():
        context = contexts[int(finite.int().argmin())]
        where = f"token {context.index + 1} of the answer to a prompt of {len(context.sequence.prompt)} tokens"
        raise NumericsError(
            f"the model's logits are not numbers at {where}: its weights are damaged, "
            "or their values do not fit into the type of --dtype"
        )


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(1)


def _weights(scores: Tensor, contexts: Rows[Context]) -> Tensor:
    """What the tokens' probabilities [N, V] at the requests' temperatures are proportional to."""
    temperatures = _column([c.params.temperature for c in contexts], scores)
    return (scores - scores.amax(dim=-1, keepdim=True)).div_(temperatures).exp_()


def _draw(scores: Tensor, contexts: Rows[Context]) -> Tensor:
    """One token per row, by inverting the cumulative distribution."""
    return _invert(_weights(scores, contexts), contexts).squeeze(1)


def _draw_filtered(scores: Tensor, contexts: Rows[Context]) -> Tensor:
    """One token per row among those that the filters keep, likeliest first."""
    probabilities = _weights(scores, contexts)
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    values, ids = probabilities.topk(min(CANDIDATES, scores.shape[1]), dim=-1)
    kept, undecided = _filter(values, contexts)
    tokens = ids.gather(1, _invert(values * kept, contexts)).squeeze(1)
    if values.shape != scores.shape and (rows := undecided.nonzero().flatten().tolist()):
        values, ids = probabilities[rows].sort(dim=-1, descending=True, stable=True)
        theirs = [contexts[row] for row in rows]
        kept, _ = _filter(values, theirs)
        tokens[rows] = ids.gather(1, _invert(values * kept, theirs)).squeeze(1)
    return tokens


def _filter(values: Tensor, contexts: Rows[Context]) -> tuple[Tensor, Tensor]:
    """Which of a row's largest probabilities stay, [N, C]: by top-k and min-p, then by top-p of what these left.

    And for which rows [N] that depends on smaller ones than those given.
    """
    params = [context.params for context in contexts]
    width = values.shape[1]
    kept = torch.arange(width, device=values.device) < _column([min(p.top_k or width, width) for p in params], values)
    kept &= values >= _column([p.min_p for p in params], values) * values[:, :1]
    goes_on = kept[:, -1]
    narrowed = _column([p.top_k > 0 or p.min_p > 0 for p in params], values).squeeze(1) > 0
    left = values * kept
    total = torch.where(goes_on.unsqueeze(1), 1.0, left.sum(dim=-1, keepdim=True))
    kept &= left.cumsum(dim=-1) - left < _column([p.top_p for p in params], values) * total
    kept[:, 0] = True
    return kept, goes_on & (narrowed | kept[:, -1])


def _invert(weights: Tensor, contexts: Rows[Context]) -> Tensor:
    """Index [N, 1] where the cumulative sum of a row's weights passes the row's random share of their total."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    target = _column([_uniform(c.params.seed, c.index) for c in contexts], weights) * total
    return torch.searchsorted(cumulative, target.minimum(total.nextafter(torch.zeros_like(total))), right=True)


def _uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the two integers only."""
    return random.Random(f"{seed}:{index}").random()
