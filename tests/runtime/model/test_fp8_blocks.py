"""Case 13: FP8 blocks at ragged edges and in shards, as every kernel of this machine multiplies by them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.choose import choose_kernels
from deepseek_runtime.kernels.fp8 import Fp8Weight
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.weights.index import CheckpointError
from deepseek_runtime.weights.load import load_model
from tiny_checkpoint import dequantise, fp8_config, quantise, quantise_all, random_tensors, v3_config, write_tensors

ROWS, COLUMNS, BLOCK = 576, 256, 128
KERNELS = [TorchKernels(), choose_kernels(torch.device("cpu"), torch.float32)]
each_kernel = pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: type(kernels).__name__)


@pytest.fixture(scope="module")
def stored() -> tuple[Tensor, Tensor]:
    """Values and scales of 4.5 × 2 blocks, whose scales differ by orders of magnitude."""
    sizes = torch.logspace(-2, 2, ROWS).unsqueeze(1) * torch.logspace(-1, 1, COLUMNS)
    return quantise(noise(ROWS, COLUMNS) * sizes)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def shard(stored: tuple[Tensor, Tensor], rows: range, columns: range) -> Fp8Weight:
    """A slice with every scale that it touches, and where in its first block it begins."""
    values, scale = stored
    blocks = [range(part.start // BLOCK, (part.stop - 1) // BLOCK + 1) for part in (rows, columns)]
    covering = scale[blocks[0].start : blocks[0].stop, blocks[1].start : blocks[1].stop].contiguous()
    part = values[rows.start : rows.stop, columns.start : columns.stop].contiguous()
    return Fp8Weight(part, covering, (BLOCK, BLOCK), (rows.start % BLOCK, columns.start % BLOCK))


def assert_multiplies(kernels: Kernels, weight: Fp8Weight, real: Tensor) -> None:
    x = noise(3, real.shape[1])
    exact = x.double() @ real.double().T
    scale = x.double().abs() @ real.double().abs().T
    assert ((kernels.linear(x, weight) - exact).abs() / scale).max() < 1e-5


@each_kernel
@pytest.mark.parametrize("size", [64, 128, 192, ROWS])
def test_shards_of_rows_multiply_by_the_right_scales(
    kernels: Kernels, size: int, stored: tuple[Tensor, Tensor]
) -> None:
    """Column-parallel layers: 64 and 192 rows begin and end inside blocks, and the last block has 64 rows."""
    real = dequantise(*stored)
    for start in range(0, ROWS, size):
        rows = range(start, start + size)
        assert_multiplies(kernels, shard(stored, rows, range(COLUMNS)), real[start : start + size])


@each_kernel
@pytest.mark.parametrize("size", [32, 64, 128])
def test_shards_of_columns_multiply_by_the_right_scales(
    kernels: Kernels, size: int, stored: tuple[Tensor, Tensor]
) -> None:
    """Row-parallel layers, whose outputs ranks add up."""
    real = dequantise(*stored)
    for start in range(0, COLUMNS, size):
        columns = range(start, start + size)
        assert_multiplies(kernels, shard(stored, range(ROWS), columns), real[:, start : start + size])


@each_kernel
def test_every_finite_byte_means_its_number(kernels: Kernels) -> None:
    finite = torch.tensor([byte for byte in range(256) if byte & 0x7F != 0x7F], dtype=torch.uint8)
    values, scale = finite.view(torch.float8_e4m3fn).unsqueeze(1), torch.tensor([[0.5], [3.0]])
    got = kernels.linear(torch.ones(1, 1), Fp8Weight(values, scale, (BLOCK, BLOCK)))
    numbers = torch.tensor([number_of(int(byte)) * (0.5 if row < BLOCK else 3.0) for row, byte in enumerate(finite)])
    assert got[0].equal(numbers)


def number_of(byte: int) -> float:
    """By the definition of e4m3fn: sign, four bits of exponent with bias 7, three of mantissa."""
    sign, exponent, mantissa = (-1) ** (byte >> 7), byte >> 3 & 15, byte & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def test_a_missing_scale_ends_the_start_with_the_tensor_s_name(tmp_path: Path) -> None:
    tensors = quantise_all(random_tensors(v3_config(), 0))
    del tensors["model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv"]
    write_tensors(tmp_path, fp8_config(v3_config()), tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.kv_a_proj_with_mqa\.weight_scale_inv: missing"):
        load_model(tmp_path, Group(), device=torch.device("cpu"), dtype=torch.float32)
