"""The trained model is as right on one and two ranks, in both attention modes, with and without drafts."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving import served
from tutor_training.problems import Problem, final_answer, held_out_problems

TUTOR = Path(__file__).resolve().parents[3] / "runtime/deepseek_runtime/tutor"
PROBLEMS = held_out_problems(40, seed=11)
CONCURRENCY = 12


def answers(client: httpx.Client, problems: Sequence[Problem]) -> list[str]:
    """What the server says to each problem at temperature 0, many at a time."""

    def ask(problem: Problem) -> str:
        messages = [{"role": "user", "content": problem.question}]
        body = {"model": "test", "messages": messages, "temperature": 0, "max_tokens": 300}
        response = client.post("/v1/chat/completions", json=body).raise_for_status()
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(ask, problems))


def tokens_per_forward(client: httpx.Client) -> float:
    """New tokens of a sequence in a step, prefills included: 1 without drafts."""
    metrics = client.get("/metrics").text
    tokens, forwards = (
        float(re.findall(rf"^dsv3_sequence_{name}_total (\S+)$", metrics, re.MULTILINE)[0])
        for name in ("tokens", "forwards")
    )
    return tokens / forwards


@pytest.fixture(scope="module")
def plain() -> list[str]:
    """One rank that drafts nothing."""
    with served(TUTOR, "--speculative-tokens", "0") as client:
        return answers(client, PROBLEMS)


def test_one_rank_without_drafts_is_right(plain: list[str]) -> None:
    right = [final_answer(text) == problem.result for text, problem in zip(plain, PROBLEMS, strict=True)]
    assert sum(right) >= 0.97 * len(PROBLEMS)


@pytest.mark.parametrize(
    ("ranks", "attention", "drafts"),
    [(1, "tensor", 1), (1, "tensor", 3), (2, "tensor", 0), (2, "tensor", 1), (2, "data", 0), (2, "data", 2)],
)
def test_every_layout_says_the_same_with_and_without_drafts(
    ranks: int, attention: str, drafts: int, plain: list[str]
) -> None:
    with served(TUTOR, "--speculative-tokens", str(drafts), "--attention", attention, ranks=ranks) as client:
        assert answers(client, PROBLEMS) == plain
        assert tokens_per_forward(client) >= (1.4 if drafts else 1)
