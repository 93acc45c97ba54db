"""What verification makes certain of drafts: the target's own choices, each made as if it were the only one."""

from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.sequence import Sequence
from deepseek_runtime.engine.verify import verify

VOCABULARY = 6


def after(*tokens: int) -> Tensor:
    """Logits whose likeliest tokens are these, one row each, the second likeliest being the next id."""
    rows = torch.zeros(len(tokens), VOCABULARY)
    for row, token in zip(rows, tokens, strict=True):
        row[token], row[(token + 1) % VOCABULARY] = 3.0, 2.0
    return rows


def certain(logits: Tensor, *trials: tuple[Sequence, list[int]]) -> list[list[int]]:
    return [[sampled.token for sampled in part] for part in verify(logits, trials)]


def sequence(generated: tuple[int, ...] = (), **params: Any) -> Sequence:
    options = {"max_tokens": 20, "temperature": 0.0} | params
    return Sequence(0, (0,), SamplingParams(**options), list(generated))


@pytest.mark.parametrize(
    ("drafts", "expected"), [([], [1]), ([1, 2, 3], [1, 2, 3, 4]), ([1, 5, 3], [1, 2]), ([5, 2, 3], [1])]
)
def test_drafts_hold_up_to_the_first_that_the_target_would_not_say(drafts: list[int], expected: list[int]) -> None:
    assert certain(after(1, 2, 3, 4)[: len(drafts) + 1], (sequence(), drafts)) == [expected]


def test_each_sequence_is_judged_by_its_own_rows() -> None:
    logits = torch.cat((after(1, 2), after(4), after(5, 0, 3)))
    assert certain(logits, (sequence(), [1]), (sequence(), []), (sequence(), [5, 1])) == [[1, 2], [4], [5, 0]]


def test_nothing_comes_behind_a_draft_that_ends_the_answer() -> None:
    assert certain(after(1, 2, 3), (sequence(stop_token_ids=frozenset({2})), [1, 2])) == [[1, 2]]
    assert certain(after(1, 2, 3), (sequence(max_tokens=2), [1, 2])) == [[1, 2]]
    longer = sequence(stop_token_ids=frozenset({2}), min_tokens=2)
    assert certain(after(1, 2, 3), (longer, [1, 2])) == [[1, 3]]


def test_penalties_see_the_drafts_before_a_position() -> None:
    assert certain(after(1, 1, 3), (sequence(presence_penalty=1.5), [1, 2])) == [[1, 2, 3]]
    assert certain(after(1, 1), (sequence(presence_penalty=1.5), [1])) == [[1, 2]]


def test_a_grammar_judges_every_position_and_is_never_asked_about_what_it_forbids() -> None:
    asked: list[list[int]] = []

    def ascending(generated: Rows[int]) -> NDArray[np.bool_]:
        assert list(generated) == sorted(generated)
        asked.append(list(generated))
        return np.arange(VOCABULARY) > (generated[-1] if generated else -1)

    assert certain(after(2, 1, 5, 5), (sequence(mask=ascending), [2, 3, 1])) == [[2, 3, 5]]
    assert asked == [[], [2], [2, 3]]


def test_seeded_draws_are_those_made_without_drafts() -> None:
    generator = torch.Generator().manual_seed(4)
    for seed in range(50):
        logits = torch.randn(3, VOCABULARY, generator=generator)
        alone, tokens = [], list[int]()
        for row in logits:
            [[token]] = certain(row.unsqueeze(0), (sequence(tuple(tokens), temperature=1.0, seed=seed), []))
            tokens.append(token)
            alone.append(token)
        drawn = sequence(temperature=1.0, seed=seed)
        assert certain(logits, (drawn, alone[:2])) == [alone]
        wrong = [alone[0], (alone[1] + 1) % VOCABULARY]
        assert certain(logits, (drawn, wrong)) == [alone[:2]]


def test_log_probabilities_are_reported_of_what_holds_only() -> None:
    logits = after(1, 2, 3)
    [reported] = verify(logits, [(sequence(logprobs=1), [1, 0])])
    assert [sampled.token for sampled in reported] == [1, 2]
    for row, sampled in zip(logits.log_softmax(-1), reported, strict=False):
        assert sampled.logprob == pytest.approx(float(row[sampled.token]))
        assert [token for token, _ in sampled.alternatives] == [sampled.token]
