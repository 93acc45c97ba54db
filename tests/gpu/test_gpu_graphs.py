"""Decode steps captured in real graphs, with Triton's kernels, against eager steps with plain torch."""

from pathlib import Path

import pytest
import torch

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.graphs import DecodeGraphs, gpu_capture, shapes
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights import load
from tiny_checkpoint import v3_config, write_checkpoint

BLOCK, BLOCKS = 8, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, v3_config(), fp8=True)
    return path


def make_model(folder: Path, kernels: Kernels, gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> DeepSeekV3Model:
    monkeypatch.setattr(load, "choose_kernels", lambda *_, **__: kernels)
    return load.load_model(folder, Group(gpu), device=gpu, dtype=torch.float32, residency="fp8")


def prompt(gpu: torch.device) -> StepBatch:
    positions = torch.cat([torch.arange(12), torch.arange(9), torch.arange(5)]).to(gpu)
    return StepBatch(positions + 3, positions, [12, 9, 5], [0, 0, 0], [[5, 0, 3], [1, 2], [7, 4]])


def decode(gpu: torch.device, offset: int) -> StepBatch:
    positions = torch.tensor([12, 9, 5], device=gpu) + offset
    return StepBatch(positions + 50, positions, [1, 1, 1], positions.tolist(), prompt(gpu).block_tables)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_replayed_steps_are_eager_steps(folder, gpu, monkeypatch, batch_invariant: bool) -> None:
    from deepseek_runtime.kernels.triton.hardware import Hardware
    from deepseek_runtime.kernels.triton.kernels import TritonKernels

    hardware = Hardware(None, units=100, stages=2)
    model = make_model(folder, TritonKernels(hardware, batch_invariant=batch_invariant), gpu, monkeypatch)
    cache = LatentCache.create(model.config, BLOCKS, BLOCK, gpu, torch.float32)
    graphs = DecodeGraphs(model, cache, most_blocks=4, scratch_block=BLOCKS - 1)
    graphs.capture(shapes(4), gpu_capture())
    model.forward(prompt(gpu), cache)
    ours = [graphs.forward(decode(gpu, offset), cache) for offset in range(3)]

    twin = make_model(folder, TorchKernels(), gpu, monkeypatch)
    cache = LatentCache.create(twin.config, BLOCKS, BLOCK, gpu, torch.float32)
    twin.forward(prompt(gpu), cache)
    for offset, hidden in enumerate(ours):
        torch.testing.assert_close(hidden, twin.forward(decode(gpu, offset), cache), rtol=1e-3, atol=1e-3)
