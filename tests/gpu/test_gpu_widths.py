"""Kernels at DeepSeek-V3's widths in bf16 against their twins, in the hardware's own FP8 where it has one."""

import pytest
import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Fp8Weight
from deepseek_runtime.kernels.interface import Expansion, SwiGLU
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.step import Absorbed, Expanded
from deepseek_runtime.weights.fp8 import to_fnuz

HIDDEN, WIDTH, EXPERTS, HEADS = 7168, 2048, 16, 128
TWIN = TorchKernels()


@pytest.fixture
def kernels(gpu: torch.device):
    from deepseek_runtime.kernels.triton.kernels import TritonKernels

    return TritonKernels.for_device(gpu)


@pytest.fixture
def weight(gpu: torch.device):
    from deepseek_runtime.kernels.triton.hardware import Hardware

    form = Hardware.of(gpu).fp8

    def make(*shape: int) -> Fp8Weight:
        values = torch.randn(shape, device=gpu).mul_(60).to(torch.float8_e4m3fn)
        scale = torch.rand(*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128), device=gpu) * 1e-3
        pair = to_fnuz(values, scale) if form is not None and form.is_fnuz else (values, scale)
        return Fp8Weight(*pair, (128, 128))

    return make


def noise(gpu: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=gpu, dtype=torch.bfloat16)


def relative(ours: Tensor, twin: Tensor) -> float:
    return ((ours.double() - twin.double()).norm() / twin.double().norm()).item()


@pytest.mark.parametrize("tokens", [1, 7, 64, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(576, HIDDEN), (HIDDEN, 16384)])
def test_linear(gpu, kernels, weight, tokens: int, outputs: int, inputs: int) -> None:
    x, matrix = noise(gpu, tokens, inputs), weight(outputs, inputs)
    assert relative(kernels.linear(x, matrix), TWIN.linear(x, matrix)) < 0.05


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_experts(gpu, kernels, weight, tokens: int) -> None:
    shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    stack = SwiGLU(*(weight(EXPERTS, *shape) for shape in shapes))
    x, shares = noise(gpu, tokens, HIDDEN), torch.rand(tokens, 8, device=gpu)
    slots = torch.stack([torch.randperm(EXPERTS + 4, device=gpu)[:8] for _ in range(tokens)])
    slots = torch.where(slots < EXPERTS, slots, -1)
    assert relative(kernels.experts(x, slots, shares, stack), TWIN.experts(x, slots, shares, stack)) < 0.08


def test_attention(gpu, kernels) -> None:
    expansion = Expansion(noise(gpu, HEADS, 128, 512) * 0.05, noise(gpu, HEADS, 128, 512) * 0.05, 0.135)
    cache = noise(gpu, 100 * 64, 576)
    lengths = torch.tensor([[1, 2], [63, 64], [1500, 1501]], device=gpu)
    tables = torch.randperm(100, device=gpu)[:72].view(3, 24)
    part = Absorbed(torch.arange(6, device=gpu).view(3, 2), lengths, tables, 64, 1501, covers_step=True)
    queries = noise(gpu, 6, HEADS, 128), noise(gpu, 6, HEADS, 64)
    ours, twin = (side.absorbed_attention(*queries, cache, part, expansion) for side in (kernels, TWIN))
    assert relative(ours, twin) < 0.02
    prompt = Expanded(0, 300, torch.randperm(6400, device=gpu)[:1000])
    queries = noise(gpu, 300, HEADS, 128), noise(gpu, 300, HEADS, 64)
    ours, twin = (side.expanded_attention(*queries, cache, prompt, expansion) for side in (kernels, TWIN))
    assert relative(ours, twin) < 0.02
