"""The C++ kernels on one and on two threads, and random weights of every kind that they multiply."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deepseek_runtime.kernels.cpu.kernels import CpuKernels
from deepseek_runtime.kernels.cpu.library import load_library
from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.kernels.interface import SwiGLU
from kernel_definitions import Noise


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    library = load_library()
    if library is None:
        pytest.skip("this machine has no AVX-512 kernels")
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield CpuKernels(library)
    torch.set_num_threads(usual)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The compute type."""
    assert isinstance(request.param, torch.dtype)
    return request.param


@pytest.fixture
def noise() -> Noise:
    """Normal random numbers of a shape, another draw at each call of a test."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return draw


@dataclass(frozen=True)
class Weights:
    """Makes weights of one kind."""

    noise: Noise
    kind: str
    compute: torch.dtype

    def __call__(self, *shape: int, offset: tuple[int, int] = (0, 0)) -> Weight:
        """A matrix or a stack. FP8 scales differ widely, and `offset` is where in its first block it begins."""
        if self.kind == "compute type":
            return self.noise(*shape, dtype=self.compute)
        block = (16, 48) if self.kind == "small blocks" else (128, 128)
        blocks = [-(-(o + s) // b) for o, s, b in zip(offset, shape[-2:], block, strict=True)]
        scale = self.noise(*shape[:-2], *blocks).exp() * 0.01
        return Fp8Weight((self.noise(*shape) * 60).to(torch.float8_e4m3fn), scale, block, offset)

    def swiglu(self, *stack: int, hidden: int, width: int) -> SwiGLU:
        return SwiGLU(self(*stack, width, hidden), self(*stack, width, hidden), self(*stack, hidden, width))


@pytest.fixture(params=["compute type", "FP8 blocks", "small blocks"])
def weights(request: pytest.FixtureRequest, noise: Noise, dtype: torch.dtype) -> Weights:
    return Weights(noise, request.param, dtype)
