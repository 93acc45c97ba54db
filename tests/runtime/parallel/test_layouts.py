"""Data attention, tensor attention and one rank alone compute the same, on 2 and on 4 ranks, on 1 and on 2 nodes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tiny_checkpoint import v3_config, write_checkpoint

STEPS = [(0, 30), (30, 41), (41, 42), (42, 43)]
RunRanks = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, v3_config(n_routed_experts=16))
    return folder


@pytest.fixture(scope="module")
def alone(checkpoint: Path, prompts: list[list[int]], run_ranks: RunRanks) -> dict[str, list[Tensor]]:
    """What one rank computes of all prompts."""
    result: dict[str, list[Tensor]] = run_ranks(1, job_of(checkpoint, prompts, [None] * len(prompts)))[0]
    return result


def job_of(checkpoint: Path, prompts: list[list[int]], homes: list[int | None], **layout: Any) -> dict[str, Any]:
    common = {"checkpoint": str(checkpoint), "run": "logits", "prompts": prompts, "steps": STEPS}
    return {**common, "homes": homes, **layout}


@pytest.mark.parametrize(
    ("place", "layout", "homes"),
    [
        ((2, 2), {"attention": "data"}, [1, 0, 1, 1]),
        ((4, 1), {"attention": "data", "redundant": 4}, [0, 2, 2, 0]),
        ((4, 1), {"attention": "tensor", "redundant": 4}, [None] * 4),
    ],
    ids=["data attention over 2 nodes", "data attention, 2 of 4 ranks idle, copies", "tensor attention, copies"],
)
def test_every_layout_computes_what_one_rank_computes(  # noqa: PLR0917 (a table and its fixtures)
    place: tuple[int, int],
    layout: dict[str, Any],
    homes: list[int | None],
    checkpoint: Path,
    prompts: list[list[int]],
    alone: dict[str, list[Tensor]],
    run_ranks: RunRanks,
) -> None:
    results = run_ranks(place[0], job_of(checkpoint, prompts, homes, **layout), nodes=place[1])
    for name in ("logits", "drafts"):
        for rank, result in enumerate(results):
            own = [rows for rows, home in zip(alone[name], homes, strict=True) if home in (rank, None)]
            for got, wanted in zip(result[name], own, strict=True):
                assert relative_error(got, wanted) < 1e-5, f"{name} on rank {rank}"


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())
