"""Over four ranks too, a token's bits do not depend on the other sequences of its step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_checkpoint import v3_config, write_checkpoint

STEPS = [(0, 30), (30, 41), (41, 42), (42, 43)]
RunRanks = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, v3_config(n_routed_experts=16))
    return folder


@pytest.mark.parametrize(("attention", "homes"), [("tensor", [None] * 4), ("data", [0, 2, 2, 3])])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prompt_alone_and_beside_others_has_the_same_bits(
    attention: str, homes: list[int | None], dtype: str, checkpoint: Path, prompts: list[list[int]], run_ranks: RunRanks
) -> None:
    job = {"checkpoint": str(checkpoint), "run": "apart", "prompts": prompts, "steps": STEPS, "homes": homes}
    ranks = run_ranks(4, job | {"attention": attention, "dtype": dtype, "batch_invariant": True})
    for rank, (together, *alone) in enumerate(ranks):
        for name in ("logits", "drafts"):
            singles = [rows for result in alone for rows in result[name]]
            assert len(together[name]) == len(singles) == sum(home in (rank, None) for home in homes)
            for got, wanted in zip(together[name], singles, strict=True):
                assert torch.equal(got, wanted), f"{name} on rank {rank}"
