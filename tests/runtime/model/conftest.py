"""Checkpoints on disk, the runtime's model of each, and the independent float32 reference: transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights import load as loading
from oracle import oracle
from tiny_checkpoint import Config, v3_config, write_checkpoint

Load = Callable[..., DeepSeekV3Model]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Write a random checkpoint to a folder of its own."""

    def make(config: Config, *, fp8: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        write_checkpoint(folder, config, fp8=fp8)
        return folder

    return make


@pytest.fixture(scope="session")
def v3_folder(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(v3_config())


@pytest.fixture(scope="session")
def load() -> Load:
    """The whole model on one rank, in float32 unless told otherwise."""

    def load_whole(folder: Path, dtype: torch.dtype = torch.float32) -> DeepSeekV3Model:
        return loading.load_model(folder, Group(), device=torch.device("cpu"), dtype=dtype)

    return load_whole


@pytest.fixture(params=["plain kernels", "this machine's kernels"])
def load_each(request: pytest.FixtureRequest, load: Load, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The same with the plain kernels, and with those that this machine gets."""
    if request.param == "plain kernels":
        monkeypatch.setattr(loading, "choose_kernels", lambda *_, **__: TorchKernels())
    return load


@pytest.fixture
def v3_model(v3_folder: Path, load: Load) -> DeepSeekV3Model:
    return load(v3_folder)


@pytest.fixture(scope="session")
def reference_logits() -> Callable[..., Tensor]:
    """The oracle's logits [T, V] for a list of tokens, or for the last `last` of them."""

    def compute(folder: Path, tokens: list[int], *, last: int = 0) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = oracle(folder)(torch.tensor([tokens]), logits_to_keep=last).logits[0]
        return logits

    return compute


@pytest.fixture(scope="session")
def tokens() -> list[int]:
    """Seventy random tokens."""
    return random_tokens(70, seed=1)


@pytest.fixture(scope="session")
def prompt() -> list[int]:
    """Three hundred random tokens."""
    return random_tokens(300, seed=2)


def random_tokens(count: int, *, seed: int) -> list[int]:
    return torch.randint(2, 200, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
