"""Case 18: experts move between ranks while requests run. The answers stay, the work evens out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from deepseek_runtime.model.config import parse_config
from deepseek_runtime.model.parallelize import ParallelError, Shard
from tiny_checkpoint import QUANTISATION, quantise_all, random_tensors, v3_config, write_tensors

RunRanks = Callable[..., list[Any]]
STEPS = [(0, 20), (20, 30), (30, 41), (41, 42), (42, 43)]
BUSY = slice(5, 9)
"""Experts of one rank, without copies, that the correction bias makes nearly every token choose."""


@pytest.fixture(scope="module", params=[False, True], ids=["bf16", "fp8"])
def skewed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint a few of whose experts do most of the work."""
    config = v3_config(n_routed_experts=16, n_group=1, topk_group=1)
    tensors = random_tensors(config, seed=0)
    for name, tensor in tensors.items():
        if name.endswith("e_score_correction_bias"):
            tensor[BUSY] += 0.4
    if request.param:
        tensors, config = quantise_all(tensors), config | {"quantization_config": QUANTISATION}
    folder = tmp_path_factory.mktemp("skewed")
    write_tensors(folder, config, tensors)
    return folder


@pytest.fixture(scope="module")
def alone(skewed: Path, prompts: list[list[int]], run_ranks: RunRanks) -> list[Tensor]:
    """The logits of each prompt on one rank."""
    result: dict[str, list[Tensor]] = run_ranks(1, job_of(skewed, prompts, [None] * len(prompts), run="logits"))[0]
    return result["logits"]


def job_of(checkpoint: Path, prompts: list[list[int]], homes: list[int | None], **rest: Any) -> dict[str, Any]:
    common = {"checkpoint": str(checkpoint), "steps": STEPS, "residency": "fp8"}
    return {**common, "prompts": prompts, "homes": homes, **rest}


@pytest.mark.parametrize("attention", ["data", "tensor"])
def test_answers_stay_and_work_evens_out_when_experts_move_under_traffic(
    attention: str,
    skewed: Path,
    prompts: list[list[int]],
    alone: list[Tensor],
    run_ranks: RunRanks,
) -> None:
    homes = [0, 2, 2, 3] if attention == "data" else [None] * 4
    results = run_ranks(4, job_of(skewed, prompts, homes, run="balanced", attention=attention, redundant=4))
    for rank, result in enumerate(results):
        own = [rows for rows, home in zip(alone, homes, strict=True) if home in (rank, None)]
        for got, wanted in zip(result["logits"], own, strict=True):
            assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5
        assert result["balance"]["before"] > 1.5
        assert result["balance"]["moved"] > 0
        assert result["lasting"] < 1.25


def test_copies_that_do_not_divide_are_refused_with_the_next_number() -> None:
    config = parse_config(v3_config(n_routed_experts=16))
    with pytest.raises(ParallelError, match=r"^16 \+ 4 redundant experts do not divide over 3 ranks; .* is 5$"):
        Shard.of(config, 0, 3, attention="data", redundant_experts=4)
