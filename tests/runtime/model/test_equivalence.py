"""Case 15: however a prompt reaches its end, alone or on several ranks, the logits are the oracle's."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from deepseek_runtime.model.model import DeepSeekV3Model
from oracle import relative_error
from tiny_checkpoint import v3_config
from ways import WAYS

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    """FP8, so that ranks cut inside blocks."""
    return make_checkpoint(v3_config(), fp8=True)


@pytest.fixture(scope="module")
def expected(folder: Path, reference_logits: Callable[..., Tensor], prompt: list[int]) -> Tensor:
    return reference_logits(folder, prompt)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_through_a_prompt_gives_the_oracle_s_logits_and_the_same_greedy_text(
    way: str, folder: Path, load: Callable[..., DeepSeekV3Model], prompt: list[int], expected: Tensor
) -> None:
    """Case 15 on one rank."""
    got = WAYS[way](load(folder), prompt)
    assert relative_error(got, expected) < TOLERANCE
    assert got.argmax(dim=-1).equal(expected.argmax(dim=-1))
