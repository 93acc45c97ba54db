"""The bits of a token's logits depend neither on its neighbours in a step nor on how a prompt is cut into steps."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.cpu.library import load_library
from deepseek_runtime.kernels.invariant import InvariantTorchKernels
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights import load as loading
from stepping import batch_of
from tiny_checkpoint import v3_config, write_checkpoint

LENGTHS = (40, 3, 61, 20, 1, 40, 33, 7, 40, 41, 42, 5, 6, 8, 9, 50, 12)
BLOCK, BLOCKS = 16, 4


@pytest.fixture(scope="module", params=["this machine's", "plain torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which kernels; their own way of choosing is left to them."""
    if request.param == "this machine's" and load_library() is None:
        pytest.skip("this machine has only plain torch")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain torch":
            patch.setattr(loading, "choose_kernels", lambda *_, **__: InvariantTorchKernels())
        yield request.param


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, kernels: str, tmp_path_factory: pytest.TempPathFactory) -> DeepSeekV3Model:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, v3_config(), fp8=True)
    return loading.load_model(folder, Group(), device=torch.device("cpu"), dtype=request.param, batch_invariant=True)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, 200, (length,), generator=generator).tolist() for length in LENGTHS]


def first_logits(model: DeepSeekV3Model, prompts: Sequence[list[int]], chunk: int) -> Tensor:
    """Logits [T, V] of the first prompt, while all of them are fed in chunks together."""
    cache = LatentCache.create(model.config, BLOCKS * len(prompts), BLOCK, model.device, model.dtype)
    tables = [list(range(row * BLOCKS, (row + 1) * BLOCKS)) for row in range(len(prompts))]
    logits = []
    for start in range(0, len(prompts[0]), chunk):
        parts = [(p[start : start + chunk], start, t) for p, t in zip(prompts, tables, strict=True) if p[start:]]
        hidden = model.forward(batch_of(parts), cache)
        logits.append(model.logits(hidden)[: len(parts[0][0])])
    return torch.cat(logits)


@pytest.mark.parametrize("batch", [1, 3, 8, 17])
@pytest.mark.parametrize("chunk", [1, 2, 13, 40])
def test_a_prompt_has_the_same_bits_in_every_batch_and_chunk(
    batch: int, chunk: int, model: DeepSeekV3Model, prompts: list[list[int]]
) -> None:
    alone = first_logits(model, prompts[:1], 1)
    together = first_logits(model, prompts[:batch], chunk)
    assert torch.equal(alone, together), f"up to {(alone - together).abs().max():.1e} apart"
