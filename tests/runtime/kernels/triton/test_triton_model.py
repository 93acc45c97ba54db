"""A whole model with Triton's kernels against the same one with plain torch: prompt, decode, and verification."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.kernels.triton.hardware import Fp8Format, Hardware
from deepseek_runtime.kernels.triton.kernels import TritonKernels
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.weights import load
from tiny_checkpoint import v3_config, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, v3_config(num_hidden_layers=2, num_nextn_predict_layers=0), fp8=True)
    return path


def steps(device: torch.device) -> list[StepBatch]:
    """A prompt of twelve, then three tokens of it to verify beside a new sequence of two."""

    def batch(positions: list[int], queries: list[int], contexts: list[int]) -> StepBatch:
        return StepBatch(
            token_ids=torch.arange(3, 3 + len(positions), device=device),
            positions=torch.tensor(positions, device=device),
            query_lens=queries,
            context_lens=contexts,
            block_tables=[[5, 0, 3], [1, 2]][: len(queries)],
        )

    return [batch(list(range(12)), [12], [0]), batch([12, 13, 14, 0, 1], [3, 2], [12, 0])]


@pytest.fixture(scope="module")
def twin(folder: Path, device: torch.device) -> Tensor:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return logits(folder, TorchKernels(), device, monkeypatch).double()


def logits(folder: Path, kernels: Kernels, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(load, "choose_kernels", lambda *_, **__: kernels)
    model = load.load_model(folder, Group(device), device=device, dtype=torch.float32, residency="fp8")
    cache = LatentCache.create(model.config, 6, 8, device, torch.float32)
    return torch.cat([model.logits(model.forward(batch, cache)) for batch in steps(device)])


@pytest.mark.parametrize(
    ("kernels", "tolerance"),
    [
        (TritonKernels(Hardware(None, 1, 1)), 1e-5),
        (TritonKernels(Hardware(None, 1, 1), batch_invariant=True), 1e-5),
        (TritonKernels(Hardware(Fp8Format(), 1, 1)), 0.1),
    ],
    ids=["W8A16", "batch invariant", "W8A8"],
)
def test_logits_are_those_of_plain_torch(folder, twin, device, monkeypatch, kernels, tolerance) -> None:
    ours = logits(folder, kernels, device, monkeypatch).double()
    assert ((ours - twin).norm() / twin.norm()).item() < tolerance
