"""Norms, rotations, the write to the cache and the router, against float64 and the twin."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_runtime.kernels.cpu.kernels import CpuKernels
from deepseek_runtime.kernels.interface import Latents
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.config import RouterConfig
from kernel_definitions import Noise, assert_close

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3}

ROUTERS = {
    "V3": RouterConfig("sigmoid", 256, 8, 8, 4, "top2_sum", True, True, 2.5),
    "V2": RouterConfig("softmax", 160, 6, 8, 3, "max", False, False, 16.0),
    "V2-Lite": RouterConfig("softmax", 64, 6, 1, 1, "max", False, False, 1.0),
    "Kimi-K2": RouterConfig("sigmoid", 384, 8, 1, 1, "top2_sum", True, True, 2.827),
    "groups of one": RouterConfig("sigmoid", 4, 2, 4, 2, "top2_sum", True, True, 1.0),
}


def normalised(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = x.double(), weight.double()
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight


def rotations(tokens: int, width: int, noise: Noise) -> Tensor:
    return torch.polar(torch.full((tokens, width // 2), 1.3), noise(tokens, width // 2))


def rotated(x: Tensor, by: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by.to(torch.complex128)).flatten(-2)


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (3, 40), (50, 1024)])
def test_a_sum_and_its_norm(tokens: int, width: int, kernels: CpuKernels, noise: Noise, dtype: torch.dtype) -> None:
    residual, x, weight = (
        noise(tokens, width, dtype=dtype),
        noise(tokens, width, dtype=dtype),
        noise(width, dtype=dtype),
    )
    assert_close(kernels.rms_norm(x, weight, 1e-6), normalised(x, weight), ROUNDING[dtype])
    summed, norm = kernels.add_rms_norm(residual, x, weight, 1e-6)
    assert torch.equal(summed, residual + x)
    assert_close(norm, normalised(summed, weight), ROUNDING[dtype])


@pytest.mark.parametrize("width", [2, 16, 64, 70])
def test_rotation_of_a_part_of_each_head(width: int, kernels: CpuKernels, noise: Noise, dtype: torch.dtype) -> None:
    by, heads = rotations(20, width, noise), noise(20, 3, width + 10, dtype=dtype)
    assert_close(kernels.rotate(heads[..., 10:], by), rotated(heads[..., 10:], by.unsqueeze(1)), ROUNDING[dtype])


def test_latents_go_to_their_slots_and_nowhere_else(kernels: CpuKernels, noise: Noise, dtype: torch.dtype) -> None:
    joined, weight, by = noise(20, 48 + 12, dtype=dtype), noise(48, dtype=dtype), rotations(20, 12, noise)
    slots = torch.randperm(33, generator=torch.Generator().manual_seed(3))[:20]
    cache = torch.full((33, 60), 7.0, dtype=dtype)
    kernels.write_latents(joined, weight, 1e-6, Latents(cache, slots, by))
    expected = torch.full((33, 60), 7.0, dtype=torch.float64)
    expected[slots] = torch.cat((normalised(joined[:, :48], weight), rotated(joined[:, 48:], by)), dim=-1)
    assert_close(cache, expected, ROUNDING[dtype])


@pytest.mark.parametrize("config", ROUTERS.values(), ids=ROUTERS)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.integers(1, 30), seed=st.integers(0, 1000))
def test_the_router_chooses_as_the_twin(config: RouterConfig, tokens: int, seed: int, kernels: CpuKernels) -> None:
    """Inputs and weights are small integers: logits are exact, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (tokens, 24), generator=generator).float()
    gate = torch.randint(-1, 2, (config.experts, 24), generator=generator).float() / 4
    bias = torch.randint(-3, 1, (config.experts,), generator=generator) / 2 if config.has_bias else None
    ids, weights = kernels.route(x, gate, bias, config)
    twin_ids, twin_weights = TorchKernels().route(x, gate, bias, config)
    assert torch.equal(ids, twin_ids)
    torch.testing.assert_close(weights, twin_weights, rtol=2e-6, atol=1e-7)


def test_the_router_reads_bfloat16_and_computes_in_float32(kernels: CpuKernels, noise: Noise) -> None:
    x, gate, bias = noise(9, 128, dtype=torch.bfloat16), noise(256, 128), noise(256)
    ids, weights = kernels.route(x, gate, bias, ROUTERS["V3"])
    twin_ids, twin_weights = TorchKernels().route(x, gate, bias, ROUTERS["V3"])
    assert torch.equal(ids, twin_ids)
    torch.testing.assert_close(weights, twin_weights, rtol=1e-5, atol=0)


def test_what_the_library_does_not_cover_is_left_to_torch(kernels: CpuKernels, noise: Noise) -> None:
    x, weight = noise(4, 32, dtype=torch.float64), noise(8, 32, dtype=torch.float64)
    assert torch.equal(kernels.linear(x, weight), x @ weight.T)
    half = noise(4, 32, dtype=torch.bfloat16)
    assert kernels.linear(half, weight.bfloat16()[:, ::1]).dtype == torch.bfloat16
    transposed = noise(32, 4)
    torch.testing.assert_close(kernels.linear(transposed.T, weight.float()), transposed.T @ weight.float().T)
