"""Triton's kernels run on the GPU where there is one, otherwise in Triton's interpreter, which must be chosen first.

Memory that is not initialised holds poison, so that no kernel can depend on what nobody wrote.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from deepseek_runtime.kernels.fp8 import Fp8Weight

Noise = Callable[..., Tensor]
MakeWeight = Callable[..., Fp8Weight]


SIGNALLING_NAN = {
    torch.float32: (torch.int32, 0x7FA00000),
    torch.bfloat16: (torch.int16, 0x7FA0),
    torch.float16: (torch.int16, 0x7D00),
    torch.float8_e4m3fn: (torch.uint8, 0x7F),
    torch.float8_e4m3fnuz: (torch.uint8, 0x80),
}
"""Bits that any arithmetic turns into NaN, and that numpy, which interprets the kernels, complains about besides."""


class Poison(TorchFunctionMode):
    """Fills tensors that are made without a value: with signalling NaN, or the largest integer."""

    MAKERS = (torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty)

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in self.MAKERS:
            stored, bits = SIGNALLING_NAN.get(result.dtype, (result.dtype, None))
            result.view(stored).fill_(torch.iinfo(stored).max if bits is None else bits)
        return result


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    with Poison():
        yield


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
