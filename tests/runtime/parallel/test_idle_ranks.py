"""Ranks without requests join every step of those that have some, and rest when nobody has any (case 16)."""

from collections.abc import Callable
from typing import Any

import pytest

from deepseek_runtime.engine.step import Operation
from tiny_checkpoint import v3_config, write_checkpoint

RunRanks = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]) -> dict[str, Any]:
    """A request on rank 2 alone; later two, on ranks 0 and 3, that end at different steps. Drafts are two tokens."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, v3_config(n_routed_experts=16))
    waves = [
        [{"prompt": prompts[0], "home": 2, "max_tokens": 8}],
        [{"prompt": prompts[1], "home": 0, "max_tokens": 3}, {"prompt": prompts[2], "home": 3, "max_tokens": 20}],
    ]
    return {"checkpoint": str(folder), "run": "serve", "waves": waves, "depth": 2, "idle_seconds": 2}


@pytest.fixture(scope="module")
def answers(job: dict[str, Any], run_ranks: RunRanks) -> list[list[int]]:
    """What one rank answers."""
    result: list[list[int]] = run_ranks(1, job | {"idle_seconds": 0})[0]["answers"]
    assert [len(answer) for answer in result] == [8, 3, 20]
    return result


def test_idle_ranks_join_every_step_and_rest_when_there_is_none(
    job: dict[str, Any], answers: list[list[int]], run_ranks: RunRanks
) -> None:
    results = run_ranks(4, job)
    assert results[0]["answers"] == answers
    assert results[1]["messages"] == results[2]["messages"] == results[3]["messages"] != []
    assert all(share < 0.1 for result in results for share in result["idle"]), [r["idle"] for r in results]


def test_answers_stay_when_the_engine_moves_experts_every_few_steps(
    job: dict[str, Any], answers: list[list[int]], run_ranks: RunRanks
) -> None:
    results = run_ranks(4, job | {"idle_seconds": 0, "redundant": 4, "rebalance_every": 3})
    assert results[0]["answers"] == answers
    assert results[3]["messages"].count(Operation.REBALANCE) >= 3
