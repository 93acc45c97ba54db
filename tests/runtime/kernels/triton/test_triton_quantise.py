"""Activations in FP8 against the torch twin, bit for bit."""

import pytest
import torch

from deepseek_runtime.kernels.triton.hardware import Fp8Format
from deepseek_runtime.kernels.triton.quantise import quantise, quantise_reference

FORMATS = [
    Fp8Format(),
    Fp8Format(power_of_two=True),
    Fp8Format(torch.float8_e4m3fnuz, 224.0),
    Fp8Format(torch.float8_e4m3fnuz, 240.0, power_of_two=True),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("tokens", "channels", "offset"), [(1, 64, 0), (7, 77, 5), (5, 30, 31)])
def test_every_group_of_channels_has_a_scale_of_its_own(noise, form, tokens, channels, offset) -> None:
    x = noise(tokens, channels) * torch.logspace(-4, 4, channels, device=noise(1).device)
    x[0, :8] = 0
    ours, twin = quantise(x, 32, offset, form), quantise_reference(x, 32, offset, form)
    assert torch.equal(ours.scale, twin.scale)
    assert torch.equal(ours.values.float(), twin.values.float())
    assert ours.values.float().abs().max() <= form.maximum


def test_scales_in_powers_of_two_are_rounded_up(noise) -> None:
    scale = quantise(noise(20, 64), 32, 0, Fp8Format(power_of_two=True)).scale
    exact = quantise(noise(20, 64), 32, 0, Fp8Format()).scale
    assert torch.equal(torch.log2(scale), torch.log2(scale).round())
    exact = quantise(x := noise(20, 64), 32, 0, Fp8Format()).scale
    rounded = quantise(x, 32, 0, Fp8Format(power_of_two=True)).scale
    assert (rounded >= exact).all()
    assert (rounded < 2 * exact).all()


def test_a_scale_that_is_a_power_of_two_stays(device) -> None:
    x = torch.full((1, 32), 448.0 * 0.25, device=device)
    assert quantise(x, 32, 0, Fp8Format(power_of_two=True)).scale.item() == 0.25


def test_a_group_of_zeros_is_zeros(device) -> None:
    quantised = quantise(torch.zeros(2, 64, device=device), 32, 0, Fp8Format())
    assert not quantised.values.float().any()
    assert quantised.scale.isfinite().all()
