"""Linear layers, dense SwiGLU and routed experts over every kind of weight, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernel_definitions as definition
from deepseek_runtime.kernels.cpu.kernels import CpuKernels
from deepseek_runtime.kernels.fp8 import Fp8Weight
from kernel_definitions import Noise, assert_close

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 4e-3}

any_sizes = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@any_sizes
@given(sizes=st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 300)), data=st.data())
def test_a_linear_layer_of_any_size(
    sizes: tuple[int, int, int], data: st.DataObject, kernels: CpuKernels, weights: Any, noise: Noise
) -> None:
    tokens, outputs, inputs = sizes
    offset = data.draw(st.tuples(st.integers(0, 15), st.integers(0, 47)))
    x, weight = noise(tokens, inputs, dtype=weights.compute), weights(outputs, inputs, offset=offset)
    expected, size = x.double() @ definition.real(weight).T, x.double().abs() @ definition.real(weight).abs().T
    assert_close(kernels.linear(x, weight), expected, ROUNDING[x.dtype], size)


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(1, 1024, 2048), (16, 576, 1024), (700, 96, 1024)])
def test_a_linear_layer_that_takes_several_threads_or_passes(
    tokens: int, outputs: int, inputs: int, kernels: CpuKernels, weights: Any, noise: Noise
) -> None:
    x, weight = noise(tokens, inputs, dtype=weights.compute), weights(outputs, inputs)
    assert_close(kernels.linear(x, weight), x.double() @ definition.real(weight).T, 2 * ROUNDING[x.dtype])


def test_float32_times_bfloat16_is_exact_products_in_float32(kernels: CpuKernels, noise: Noise) -> None:
    x, weight = noise(5, 90), noise(33, 90, dtype=torch.bfloat16)
    assert_close(kernels.linear(x, weight), x.double() @ weight.double().T, ROUNDING[torch.float32])


def test_rows_of_a_wider_tensor_are_taken_where_they_lie(kernels: CpuKernels, weights: Any, noise: Noise) -> None:
    wide, weight = noise(6, 200, dtype=weights.compute), weights(24, 64)
    assert_close(kernels.linear(wide[:, 8:72], weight), wide[:, 8:72].double() @ definition.real(weight).T, 4e-3)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_every_fp8_byte_is_decoded_exactly(tokens: int, kernels: CpuKernels, dtype: torch.dtype) -> None:
    codes = torch.zeros(256, 64, dtype=torch.uint8)
    codes[:, 5] = torch.arange(256)
    values = codes.view(torch.float8_e4m3fn)
    x = torch.zeros(tokens, 64, dtype=dtype)
    x[:, 5] = 1
    decoded = kernels.linear(x, Fp8Weight(values, torch.ones(2, 1), (128, 128)))
    assert torch.equal(decoded.float().nan_to_num(777), values[:, 5].float().nan_to_num(777).expand(tokens, -1))


@any_sizes
@given(tokens=st.integers(1, 20), hidden=st.integers(1, 90), width=st.integers(1, 70))
def test_a_dense_layer_of_any_size(
    tokens: int, hidden: int, width: int, kernels: CpuKernels, weights: Any, noise: Noise
) -> None:
    x, layer = noise(tokens, hidden, dtype=weights.compute), weights.swiglu(hidden=hidden, width=width)
    size = definition.swiglu_size(x, layer)
    assert_close(kernels.swiglu(x, layer), definition.swiglu(x, layer), ROUNDING[x.dtype], size)


@any_sizes
@given(sizes=st.tuples(st.integers(1, 25), st.integers(1, 6), st.integers(1, 4)), seed=st.integers(0, 99))
def test_routed_experts_add_up_and_absent_ones_add_nothing(
    sizes: tuple[int, int, int], seed: int, kernels: CpuKernels, weights: Any, noise: Noise
) -> None:
    tokens, held, chosen = sizes
    generator = torch.Generator().manual_seed(seed)
    x, stack = noise(tokens, 72, dtype=weights.compute), weights.swiglu(held, hidden=72, width=44)
    everywhere = torch.stack([torch.randperm(8, generator=generator)[:chosen] for _ in range(tokens)])
    slots, shares = torch.where(everywhere < held, everywhere, -1), torch.rand(tokens, chosen, generator=generator)
    expected = definition.experts(x, slots, shares, stack)
    actual = kernels.experts(x, slots, shares, stack)
    assert not actual[(slots < 0).all(dim=1)].any()
    size = definition.experts(x, slots, shares, stack, definition.swiglu_size)
    assert_close(actual, expected, ROUNDING[x.dtype], size + 1e-9)
