"""Exact acceptance of drafted tokens: the target's own choice at each position, as long as it equals the draft.

Drafts are greedy guesses, so accepting one when the token sampled from the target equals it is rejection sampling with
a deterministic proposal: exact at every temperature. Whether a position counts is decided by the drafts before it, so
every position can be sampled at once as if they were accepted.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from itertools import accumulate, chain, islice

from torch import Tensor

from deepseek_runtime.engine.adjust import Context
from deepseek_runtime.engine.sampler import choose, report, take
from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.engine.sequence import Sequence
from deepseek_runtime.engine.speculation import agreement

Trial = tuple[Sequence, Rows[int]]
"""A sequence and the drafts that the step tried behind it."""


def verify(logits: Tensor, trials: Rows[Trial]) -> list[list[Sampled]]:
    """The tokens that each trial makes certain: the drafts that hold, and one more, which ends it or comes next.

    `logits` [N, V] float32 has 1 + drafts rows for each trial. Raises NumericsError where they are no numbers.
    """
    parts = [_contexts(sequence, drafts) for sequence, drafts in trials]
    starts = accumulate((1 + len(drafts) for _, drafts in trials), initial=0)
    rows = [start + i for start, part in zip(starts, parts, strict=False) for i in range(len(part))]
    logits, contexts = take(logits, rows), list(chain.from_iterable(parts))
    tokens = choose(logits, contexts)
    kept: list[range] = []
    start = 0
    for part, (_, drafts) in zip(parts, trials, strict=True):
        held = agreement(tokens[start : start + len(part) - 1], drafts)
        kept.append(range(start, start + held + 1))
        start += len(part)
    sampled = iter(report(logits, list(chain.from_iterable(kept)), tokens, contexts))
    return [list(islice(sampled, len(part))) for part in kept]


def _contexts(sequence: Sequence, drafts: Rows[int]) -> list[Context]:
    """What stands before each position that can matter: none behind a draft that ends the answer or is forbidden.

    A grammar that fails at the first position is the sequence's fault; further on, the position is left to later steps.
    """
    contexts = [Context(sequence)]
    sequence.fault = contexts[0].fault
    for count, draft in enumerate(drafts, 1):
        last = contexts[-1]
        if sequence.params.ends(draft, last.index + 1) or not last.permits(draft):
            break
        following = Context(sequence, drafts[:count])
        if following.fault:
            break
        contexts.append(following)
    return contexts
