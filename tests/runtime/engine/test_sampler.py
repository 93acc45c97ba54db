"""Each row is sampled by its own parameters, and by nothing else in the batch."""

from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from deepseek_runtime.engine.adjust import Context, adjust
from deepseek_runtime.engine.sampler import CANDIDATES, choose, report
from deepseek_runtime.engine.sampling import NumericsError, Sampled, SamplingParams
from deepseek_runtime.engine.sequence import Sequence
from deepseek_runtime.server.schemas import CompletionBody


def row(generated: tuple[int, ...] = (), **params: Any) -> Sequence:
    return Sequence(0, (3,), SamplingParams(max_tokens=9, **params), list(generated))


def sample(logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
    """What is chosen behind each sequence, and reported of it."""
    contexts = [Context(sequence) for sequence in sequences]
    return report(logits, range(len(contexts)), choose(logits, contexts), contexts)


def draws(logits: Tensor, count: int = 400, **params: Any) -> Counter[int]:
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


def test_the_many_candidates_of_a_flat_distribution_are_all_drawn() -> None:
    logits = torch.zeros(1, 4 * CANDIDATES)
    highest = max(draws(logits, 200, top_p=0.9))
    assert highest > 2 * CANDIDATES
    assert max(draws(logits, 200, top_k=2 * CANDIDATES)) < 2 * CANDIDATES


def test_filters_see_beyond_the_candidates_what_the_whole_vocabulary_says() -> None:
    logits = torch.randn(1, 3 * CANDIDATES, generator=torch.Generator().manual_seed(3)) / 4
    probabilities = logits[0].softmax(-1)
    order = probabilities.argsort(descending=True)
    kept = int((probabilities[order].cumsum(0) - probabilities[order] < 0.2).sum())
    assert kept < CANDIDATES
    assert set(draws(logits, 300, top_p=0.2)) <= set(order[:kept].tolist())
    low = probabilities.max() * 0.6
    assert set(draws(logits, 300, min_p=0.6)) <= set((probabilities >= low).nonzero().flatten().tolist())


def test_a_bias_is_added_to_the_logits_of_its_token() -> None:
    assert sample(LOGITS, [row(temperature=0.0, logit_bias={3: 3.5})])[0].token == 3
    assert sample(LOGITS, [row(temperature=0.0, logit_bias={3: 2.5, 1: -100})])[0].token == 3
    assert 1 not in draws(LOGITS, logit_bias={1: -100})


def even_after_odd(generated: Rows[int]) -> NDArray[np.bool_] | None:
    """A grammar that lets even ids follow odd ones, and anything follow the rest."""
    return np.arange(4) % 2 == 0 if generated and generated[-1] % 2 else None


def test_a_grammar_decides_what_may_follow() -> None:
    assert sample(LOGITS, [row((2,), temperature=0.0, mask=even_after_odd)])[0].token == 1
    assert sample(LOGITS, [row((1,), temperature=0.0, mask=even_after_odd)])[0].token == 2
    assert set(draws(LOGITS, mask=lambda _: np.array([True, False]))) == {0}


def test_where_a_grammar_allows_nothing_the_answer_ends() -> None:
    nothing = np.zeros(4, dtype=np.bool_)
    ending: dict[str, Any] = {"mask": lambda _: nothing, "stop_token_ids": frozenset({3}), "temperature": 0.0}
    assert sample(LOGITS, [row(**ending)])[0].token == 3
    assert sample(LOGITS, [row(**ending, min_tokens=5)])[0].token == 3


def test_logits_that_are_no_numbers_are_an_error_that_says_where() -> None:
    for broken in (torch.nan, torch.inf):
        logits = torch.cat((LOGITS, LOGITS))
        logits[1, 2] = broken
        for temperature in (0.0, 1.0):
            with pytest.raises(NumericsError, match="token 3 of the answer to a prompt of 1 tokens"):
                sample(logits, [row(), row((5, 6), temperature=temperature)])


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"min_p": 0.1}])
@pytest.mark.parametrize("temperature", [1e-50, 1e-38, 9e-6, 1e-5])
def test_temperatures_that_float32_cannot_divide_by_are_greedy(temperature: float, params: dict[str, Any]) -> None:
    assert set(draws(LOGITS, 50, temperature=temperature, **params)) == {1}


@pytest.mark.parametrize("penalty", [1e-50, 0.0099, 100.1, float("nan"), float("inf")])
def test_a_repetition_penalty_that_no_logit_survives_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match=r"repetition_penalty must be 0\.01 to 100, not"):
        row(repetition_penalty=penalty)
    with pytest.raises(ValidationError, match="repetition_penalty"):
        CompletionBody(model="m", prompt=["a"], repetition_penalty=penalty)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"])
def test_a_parameter_that_is_no_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number, not nan"):
        replace(SamplingParams(max_tokens=9), **{name: float("nan")})  # type: ignore[arg-type]


def test_damaged_weights_are_an_error_whatever_a_request_makes_of_their_logits() -> None:
    logits = torch.tensor([[0.0, torch.inf, 1.0, 2.0]])
    only_zero = {"mask": lambda _: np.array([True, False, False, False])}
    requests: list[dict[str, Any]] = [only_zero, {"presence_penalty": 1.0}, {"logit_bias": {1: -100.0}}]
    for adjusting in requests:
        with pytest.raises(NumericsError):
            choose(logits, [Context(row((1,), **adjusting))])


def test_each_repetition_of_a_request_is_penalised_for_its_own_words_only() -> None:
    params = SamplingParams(max_tokens=9, presence_penalty=1.0, frequency_penalty=0.5)
    said: list[list[int]] = [[1, 1, 2], [2], []]
    contexts = [Context(Sequence(number, (3,), params, generated)) for number, generated in enumerate(said)]
    expected = [[0, 2.0, 1.5, 0], [0, 0, 1.5, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(LOGITS - adjust(LOGITS.expand(3, -1), contexts), torch.tensor(expected))


LARGEST = torch.finfo(torch.float32).max
VALUES = st.sampled_from([-torch.inf, -LARGEST, -1e30, -100.0, -1.0, 0.0, 1e-30, 1.0, 100.0, 1e30, LARGEST])
IDS = st.integers(0, 7)
PARAMS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-320, 1e-50, 1e-38, 1e-6, 1e-5, 1e-3, 1.0, 2.0]),
        "top_p": st.sampled_from([1e-320, 1e-50, 1e-9, 0.5, 1 - 1e-12, 1.0]),
        "top_k": st.sampled_from([0, 1, 3, 10**400]),
        "min_p": st.sampled_from([0.0, 1e-320, 1e-9, 0.5, 1.0]),
        "presence_penalty": st.sampled_from([-2.0, 0.0, 2.0]),
        "frequency_penalty": st.sampled_from([-2.0, 0.0, 2.0]),
        "repetition_penalty": st.sampled_from([0.01, 1.0, 100.0]),
        "logit_bias": st.dictionaries(IDS, st.sampled_from([-100.0, 100.0]), max_size=8),
        "stop_token_ids": st.frozensets(IDS),
        "min_tokens": st.sampled_from([0, 5]),
        "seed": st.integers(-(2**63), 2**63),
    }
)


@given(st.data())
def test_whatever_is_asked_for_the_token_is_one_that_may_come(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(PARAMS, st.lists(IDS, max_size=4), st.sets(IDS, min_size=1)), min_size=1))
    numbers = st.lists(VALUES, min_size=8, max_size=8).filter(lambda row: max(row) > -torch.inf)
    logits = torch.tensor([data.draw(numbers) for _ in rows])
    sequences = []
    for params, generated, ids in rows:
        mask = np.isin(np.arange(8), list(ids))
        sequences.append(row(tuple(generated), **params, mask=lambda _, mask=mask: mask))
    tokens = choose(logits, [Context(sequence) for sequence in sequences])
    assert all(token in ids for token, (_, _, ids) in zip(tokens, rows, strict=True))
    free = [row(tuple(generated), **params) for params, generated, _ in rows]
    assert all(0 <= token < 8 for token in choose(logits, [Context(sequence) for sequence in free]))
