"""Heads and latents of odd widths: what lies behind them begins at an odd place, and no pair is aligned."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import kernel_definitions as definition
from deepseek_runtime.kernels.cpu.kernels import CpuKernels
from deepseek_runtime.kernels.cpu.library import load_library
from deepseek_runtime.kernels.interface import Expansion, Kernels, Latents
from deepseek_runtime.kernels.invariant import InvariantTorchKernels
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.step import Absorbed, Expanded
from kernel_definitions import assert_close

HEADS, NOPE, ROPE, VALUE, LATENT, CONTEXT = 3, 7, 6, 5, 9, 11


def cpu_kernels() -> Kernels:
    library = load_library()
    if library is None:
        pytest.skip("this machine has no AVX-512 kernels")
    return CpuKernels(library)


@pytest.fixture(params=[TorchKernels, InvariantTorchKernels, cpu_kernels], ids=["torch", "invariant", "C++"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    make: Callable[[], Kernels] = request.param
    return make()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def noise(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(request.param)


def rotations(tokens: int) -> Tensor:
    return torch.polar(torch.ones(tokens, ROPE // 2), torch.arange(tokens * ROPE // 2).view(tokens, -1) * 0.3)


def rotated(x: Tensor, by: Tensor) -> Tensor:
    pairs = torch.complex(x[..., ::2].double(), x[..., 1::2].double()) * by
    return torch.view_as_real(pairs).flatten(-2)


@pytest.mark.parametrize(("tokens", "heads"), [(1, 1), (4, HEADS)])
def test_queries_behind_an_odd_number_of_channels_are_rotated(
    tokens: int, heads: int, kernels: Kernels, noise: Callable[..., Tensor]
) -> None:
    rope = noise(tokens, heads, NOPE + ROPE)[..., NOPE:]
    by = rotations(tokens)
    assert_close(kernels.rotate(rope, by), rotated(rope, by.unsqueeze(1)), 1e-2)


@pytest.mark.parametrize("tokens", [1, 4])
def test_latents_of_an_odd_width_are_normalised_and_their_keys_rotated(
    tokens: int, kernels: Kernels, noise: Callable[..., Tensor]
) -> None:
    joined, norm, by = noise(tokens, LATENT + ROPE), noise(LATENT), rotations(tokens)
    cache = noise(CONTEXT, LATENT + ROPE)
    slots = torch.arange(tokens) * 2
    kernels.write_latents(joined, norm, 1e-6, Latents(cache, slots, by))
    latent = joined[:, :LATENT].double()
    normalised = latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.double()
    assert_close(cache[slots], torch.cat((normalised, rotated(joined[:, LATENT:], by)), dim=-1), 1e-2)


def test_both_forms_of_attention_take_odd_widths(kernels: Kernels, noise: Callable[..., Tensor]) -> None:
    expansion = Expansion(noise(HEADS, NOPE, LATENT), noise(HEADS, VALUE, LATENT), 0.2)
    q_nope, q_rope = noise(2, HEADS, NOPE + ROPE)[..., :NOPE], noise(2, HEADS, ROPE)
    cache, slots = noise(16, LATENT + ROPE), torch.arange(CONTEXT)
    decode = Absorbed(
        torch.tensor([[0, 1]]), torch.tensor([[CONTEXT - 1, CONTEXT]]), torch.tensor([[0, 1]]), 8, CONTEXT, True
    )
    absorbed = kernels.absorbed_attention(q_nope, q_rope, cache, decode, expansion)
    expanded = kernels.expanded_attention(q_nope, q_rope, cache, Expanded(0, 2, slots), expansion)
    expected = [definition.attention(q_nope[t], q_rope[t], cache[: CONTEXT - 1 + t], expansion) for t in range(2)]
    for form in (absorbed, expanded):
        assert_close(form, torch.stack(expected), 2e-2)
