"""Case 13, FP8 blocks: every byte, ragged edges, slices that begin inside a block, and the other FP8 of MI300."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Fp8Weight, decode_e4m3, linear
from deepseek_runtime.weights.fp8 import covering_blocks, to_fnuz
from tiny_checkpoint import dequantise, quantise

ALL_BYTES = torch.arange(256, dtype=torch.int16).to(torch.uint8)
NAN_BYTES = (0x7F, 0xFF)


def e4m3(byte: int) -> float:
    """The value of a byte, from the definition of the format: sign, 4 bits of exponent with bias 7, 3 of mantissa."""
    sign, exponent, mantissa = (-1) ** (byte >> 7), byte >> 3 & 15, byte & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def test_every_byte_is_decoded() -> None:
    finite = [byte for byte in range(256) if byte not in NAN_BYTES]
    decoded = decode_e4m3(ALL_BYTES.view(torch.float8_e4m3fn))
    assert [decoded[byte].item() for byte in finite] == [e4m3(byte) for byte in finite]


def test_fnuz_gives_the_same_numbers_for_every_byte_and_no_nan() -> None:
    scale = torch.tensor([[3.0]])
    values, doubled = to_fnuz(ALL_BYTES.view(torch.float8_e4m3fn), scale)
    numbers = values.float() * doubled
    finite = [byte for byte in range(256) if byte not in NAN_BYTES]
    assert not numbers.isnan().any()
    assert [numbers[0, byte].item() for byte in finite] == [3.0 * e4m3(byte) for byte in finite]
    assert values.view(torch.uint8)[0x80] == 0
    assert scale.item() == 3.0, "the argument is left alone"


def cut(values: Tensor, scale: Tensor, rows: range, columns: range) -> Fp8Weight:
    row_blocks, row = covering_blocks(rows, 128)
    column_blocks, column = covering_blocks(columns, 128)
    part = values[rows.start : rows.stop, columns.start : columns.stop]
    covering = scale[row_blocks.start : row_blocks.stop, column_blocks.start : column_blocks.stop]
    return Fp8Weight(part, covering, (128, 128), (row, column))


@pytest.fixture(scope="module")
def ragged() -> tuple[Tensor, Tensor, Tensor]:
    """Values and scales of a 576 × 256 matrix (4.5 blocks of rows) with very different blocks, and its real numbers."""
    weight = torch.randn(576, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 576).unsqueeze(1)
    values, scale = quantise(weight)
    assert scale.shape == (5, 2)
    return values, scale, dequantise(values, scale)


@pytest.mark.parametrize("size", [64, 128, 192, 576])
def test_shards_of_any_size_have_the_right_scales(size: int, ragged: tuple[Tensor, Tensor, Tensor]) -> None:
    values, scale, real = ragged
    for start in range(0, 576, size):
        part = cut(values, scale, range(start, start + size), range(256))
        assert torch.equal(part.dequantise(torch.float32), real[start : start + size])


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_slice_of_any_matrix_has_the_right_scales(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400))
    values = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // 128), -(-columns // 128)) + 0.1
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    bottom, right = data.draw(st.integers(top + 1, rows)), data.draw(st.integers(left + 1, columns))
    part = cut(values, scale, range(top, bottom), range(left, right))
    assert torch.equal(part.dequantise(torch.float32), dequantise(values, scale)[top:bottom, left:right])


def test_the_scale_multiplies(ragged: tuple[Tensor, Tensor, Tensor]) -> None:
    values, scale, real = ragged
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    weight = Fp8Weight(values, scale, (128, 128))
    torch.testing.assert_close(linear(x, weight), x @ real.T)
    assert linear(x.bfloat16(), weight).dtype == torch.bfloat16


def test_one_matrix_of_a_stack_is_that_matrix(ragged: tuple[Tensor, Tensor, Tensor]) -> None:
    values, scale, real = ragged
    stack = Fp8Weight(torch.stack((values, values)), torch.stack((scale, scale * 2)), (128, 128))
    assert torch.equal(stack[1].dequantise(torch.float32), real * 2)
    assert torch.equal(stack.dequantise(torch.float32), torch.stack((real, real * 2)))
