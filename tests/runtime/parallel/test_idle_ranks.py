"""Ranks without requests join every step of those that have some, and rest when nobody has any (case 16)."""

from collections.abc import Callable
from typing import Any

import pytest

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


def test_idle_ranks_join_every_step_and_rest_when_there_is_none(job: dict[str, Any], run_ranks: RunRanks) -> None:
    alone = run_ranks(1, job | {"idle_seconds": 0})[0]
    results = run_ranks(4, job)
    assert [len(answer) for answer in alone["answers"]] == [8, 3, 20]
    assert results[0]["answers"] == alone["answers"]
    assert results[1]["messages"] == results[2]["messages"] == results[3]["messages"] > 0
    assert all(share < 0.1 for result in results for share in result["idle"]), [r["idle"] for r in results]
