"""Linear layers over FP8 blocks against float64, for hardware with FP8, without it, and with fnuz."""

import pytest
import torch

from deepseek_runtime.kernels.fp8 import Fp8Weight
from deepseek_runtime.kernels.triton import gemm
from deepseek_runtime.kernels.triton.hardware import Fp8Format, Hardware
from deepseek_runtime.kernels.triton.quantise import quantise_reference
from deepseek_runtime.kernels.triton.tiles import is_covered
from deepseek_runtime.weights.fp8 import to_fnuz

FNUZ = Fp8Format(torch.float8_e4m3fnuz, 224.0)
CUT = (30, 5)
"""Where a shard may begin in its first block."""


def stored_for(weight: Fp8Weight, form: Fp8Format | None) -> Fp8Weight:
    """The weight as the loader keeps it for hardware that multiplies `form`."""
    if form is None or not form.is_fnuz:
        return weight
    return Fp8Weight(*to_fnuz(weight.values, weight.scale), weight.block, weight.offset)


def relative(ours, exact) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("offset", [(0, 0), CUT])
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(1, 96, 64), (5, 70, 77), (37, 33, 40)])
def test_weights_are_decoded_in_the_tile(noise, fp8_weight, tokens, outputs, inputs, offset) -> None:
    weight = fp8_weight(outputs, inputs, offset=offset)
    x = noise(tokens, inputs)
    exact = x.double() @ weight.dequantise(torch.float64).T
    assert relative(gemm.linear(x, weight, Hardware(None, 1, 1)), exact) < 1e-6
    assert relative(gemm.linear(x.bfloat16(), weight, Hardware(None, 1, 1)), exact) < 6e-3


@pytest.mark.parametrize("offset", [(0, 0), CUT])
def test_narrow_layers_split_their_columns(noise, fp8_weight, offset) -> None:
    weight, x = fp8_weight(40, 32 * 13, offset=offset), noise(3, 32 * 13)
    hardware = Hardware(None, units=7, stages=1)
    assert gemm.splits(40, 13, gemm.TileShape(16, 32, 4), hardware) == 3
    exact = x.double() @ weight.dequantise(torch.float64).T
    assert relative(gemm.linear(x, weight, hardware), exact) < 1e-6


@pytest.mark.parametrize("form", [Fp8Format(), Fp8Format(power_of_two=True), FNUZ])
@pytest.mark.parametrize("offset", [(0, 0), CUT])
def test_fp8_maths_is_exact_but_for_the_rounding_of_activations(noise, fp8_weight, form, offset) -> None:
    weight = fp8_weight(70, 77, offset=offset)
    x = noise(5, 77)
    rounded = quantise_reference(x, 32, offset[1], form)
    spread = rounded.scale.double().repeat_interleave(32, dim=1)[:, offset[1] : offset[1] + 77]
    exact = (rounded.values.double() * spread) @ weight.dequantise(torch.float64).T
    ours = gemm.linear(x, stored_for(weight, form), Hardware(form, 1, 1))
    assert relative(ours, exact) < 1e-6
    assert relative(ours, x.double() @ weight.dequantise(torch.float64).T) < 0.04


@pytest.mark.parametrize("maths", [None, Fp8Format(), FNUZ])
@pytest.mark.parametrize("form", [None, FNUZ])
def test_every_byte_stands_for_its_number(device, form, maths) -> None:
    finite = [byte for byte in range(256) if byte & 0x7F != 0x7F]
    values = torch.tensor(finite, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn).view(-1, 1)
    weight = Fp8Weight(values, torch.full((8, 1), 3.0, device=device), (32, 32))
    weight = stored_for(weight, form)
    ours = gemm.linear(torch.ones(1, 1, device=device), weight, Hardware(maths, 1, 1))
    torch.testing.assert_close(ours, values.float().T * 3, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_every_batch(noise, dtype) -> None:
    x, weight = noise(70, 100, dtype=dtype), noise(50, 100, dtype=dtype)
    whole = gemm.linear(x, weight, Hardware(None, 1, 1), batch_invariant=True)
    assert torch.equal(gemm.linear(x[3:4], weight, Hardware(None, 1, 1), batch_invariant=True), whole[3:4])
    assert relative(whole, x.double() @ weight.double().T) < 6e-3


def test_each_head_has_a_matrix_of_its_own(noise) -> None:
    x, weight = noise(5, 3, 20), noise(3, 33, 20)
    ours = gemm.linear_per_head(x, weight, Hardware(None, 1, 1))
    assert relative(ours, torch.einsum("thk,hnk->thn", x.double(), weight.double())) < 1e-6


def test_what_the_tiles_do_not_cover_is_known(fp8_weight) -> None:
    weight = fp8_weight(70, 77)
    assert is_covered(weight)
    assert not is_covered(Fp8Weight(weight.values, weight.scale, (32, 48)))
    assert not is_covered(Fp8Weight(weight.values, weight.scale[:, :1], (32, 32)))
    assert not is_covered(weight.values)
