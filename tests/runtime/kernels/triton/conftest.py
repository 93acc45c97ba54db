"""Triton's kernels run on the GPU where there is one, otherwise in Triton's interpreter, which must be chosen first."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from deepseek_runtime.kernels.fp8 import Fp8Weight

Noise = Callable[..., Tensor]
MakeWeight = Callable[..., Fp8Weight]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def noise(device: torch.device) -> Noise:
    """Normal random numbers of a shape, another draw at each call of a test."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return draw


@pytest.fixture
def fp8_weight(noise: Noise) -> MakeWeight:
    """A matrix, or stack, in FP8 blocks of 32 × 32 whose scales differ widely; `offset` cuts into the first block."""

    def make(*shape: int, offset: tuple[int, int] = (0, 0)) -> Fp8Weight:
        blocks = [-(-(start + size) // 32) for start, size in zip(offset, shape[-2:], strict=True)]
        scale = noise(*shape[:-2], *blocks).exp() * 0.01
        return Fp8Weight((noise(*shape) * 60).to(torch.float8_e4m3fn), scale, (32, 32), offset)

    return make
