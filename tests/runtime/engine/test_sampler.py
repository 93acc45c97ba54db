"""Each row is sampled by its own parameters, and by nothing else in the batch."""

from collections import Counter
from typing import Any

import pytest
import torch

from deepseek_runtime.engine.sampler import sample
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.sequence import Sequence


def row(generated: tuple[int, ...] = (), **params: Any) -> Sequence:
    return Sequence(0, (3,), SamplingParams(max_tokens=9, **params), list(generated))


def draws(logits: torch.Tensor, count: int = 400, **params: Any) -> Counter[int]:
    rows = [row(seed=seed, **params) for seed in range(count)]
    return Counter(sampled.token for sampled in sample(logits.expand(count, -1), rows))


LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0]])


def test_temperature_zero_takes_the_best() -> None:
    assert sample(LOGITS, [row(temperature=0.0)])[0].token == 1


def test_draws_follow_the_softmax() -> None:
    counts = draws(LOGITS, 4000)
    expected = LOGITS[0].softmax(-1)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    ("params", "possible"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 1}, {1}),
        ({"top_p": 0.7}, {1, 2}),
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.3}, {1, 2}),
        ({"top_k": 3, "top_p": 0.9999}, {0, 1, 2}),
        ({"temperature": 1e-6}, {1}),
    ],
)
def test_filters_keep_exactly_the_likely_tokens(params: dict[str, Any], possible: set[int]) -> None:
    assert set(draws(LOGITS, **params)) == possible


def test_a_seeded_row_says_the_same_alone_and_in_a_batch() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    rows = [row(seed=seed, temperature=seed / 2) for seed in range(5)]
    together = [sampled.token for sampled in sample(logits, rows)]
    alone = [sample(logits[i : i + 1], [rows[i]])[0].token for i in range(5)]
    assert together == alone


def test_a_row_draws_anew_at_each_token() -> None:
    tokens = {sample(torch.zeros(1, 1000), [row((0,) * n, seed=5)])[0].token for n in range(20)}
    assert len(tokens) > 15


def test_penalties_push_down_what_was_said() -> None:
    greedy = {"temperature": 0.0}
    assert sample(LOGITS, [row((1,), presence_penalty=1.5, **greedy)])[0].token == 2
    assert sample(LOGITS, [row((1, 1), frequency_penalty=0.6, **greedy)])[0].token == 2
    assert sample(LOGITS, [row((1,), repetition_penalty=3.0, **greedy)])[0].token == 2


def test_the_end_is_not_sampled_before_the_minimum_of_tokens() -> None:
    end = frozenset({1})
    assert sample(LOGITS, [row(temperature=0.0, stop_token_ids=end, min_tokens=1)])[0].token == 2
    assert sample(LOGITS, [row((5,), temperature=0.0, stop_token_ids=end, min_tokens=1)])[0].token == 1


def test_log_probabilities_are_the_models_own_whatever_the_sampling() -> None:
    params: dict[str, Any] = {"temperature": 0.3, "top_k": 1, "presence_penalty": 1.0, "logprobs": 2}
    sampled = sample(LOGITS, [row(**params)])[0]
    expected = LOGITS[0].log_softmax(-1)
    assert sampled.logprob == pytest.approx(float(expected[sampled.token]))
    assert [token for token, _ in sampled.alternatives] == [1, 2]
    assert sample(LOGITS, [row(logprobs=0)])[0].alternatives == ()
    assert sample(LOGITS, [row()])[0].logprob is None
