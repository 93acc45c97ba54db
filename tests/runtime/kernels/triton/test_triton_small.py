"""Norms, rotary embedding with the cache write, and the choice of experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_runtime.kernels import router as twin
from deepseek_runtime.kernels.interface import Latents
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.kernels.triton import norms, rope, router
from deepseek_runtime.model.config import RouterConfig

TORCH = TorchKernels()


@pytest.mark.parametrize("width", [5, 64, 700])
def test_the_residual_is_added_and_normed_at_once(noise, width: int) -> None:
    residual, x, weight = noise(3, width), noise(3, width), noise(width)
    summed, normed = norms.add_rms_norm(residual, x, weight, 1e-6)
    exact = residual.double() + x.double()
    assert torch.equal(summed, residual + x)
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    torch.testing.assert_close(normed.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norms.rms_norm(x, weight, 1e-6), TORCH.rms_norm(x, weight, 1e-6))


def test_the_sum_is_rounded_before_the_norm_as_in_the_twin(noise) -> None:
    residual, x, weight = (noise(*shape, dtype=torch.bfloat16) for shape in ((4, 96), (4, 96), (96,)))
    ours, expected = (add(residual, x, weight, 1e-6) for add in (norms.add_rms_norm, TORCH.add_rms_norm))
    # The interpreter cuts where hardware rounds: a unit in the last place.
    torch.testing.assert_close(ours[0], expected[0], rtol=2**-7, atol=0)
    torch.testing.assert_close(ours[1], TORCH.rms_norm(ours[0], weight, 1e-6), rtol=2**-7, atol=1e-6)


@pytest.fixture
def rotations(noise):
    def make(tokens: int, pairs: int) -> torch.Tensor:
        angle = noise(tokens, pairs)
        return torch.polar(torch.full_like(angle, 1.1), angle)

    return make


@pytest.mark.parametrize("front", [4, 3])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 4), (5, 19, 6), (3, 16, 64)])
def test_the_pairs_of_every_head_are_rotated(noise, rotations, tokens: int, heads: int, width: int, front: int) -> None:
    joined = noise(tokens, heads, front + width)
    x, turn = joined[..., front:], rotations(tokens, width // 2)
    torch.testing.assert_close(rope.rotate(x, turn), TORCH.rotate(x, turn))


@pytest.mark.parametrize("latent", [20, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_are_normed_rotated_and_written_where_they_belong(noise, rotations, device, dtype, latent) -> None:
    joined, weight = noise(5, latent + 6, dtype=dtype), noise(latent, dtype=dtype)
    slots = torch.tensor([7, 0, 3, 9, 4], device=device)
    caches = [torch.full((10, latent + 6), 9.0, dtype=dtype, device=device) for _ in range(2)]
    turn = rotations(5, 3)
    rope.write_latents(joined, weight, 1e-6, Latents(caches[0], slots, turn))
    TORCH.write_latents(joined, weight, 1e-6, Latents(caches[1], slots, turn))
    torch.testing.assert_close(caches[0], caches[1])
    assert (caches[0][[1, 2, 5, 6, 8]] == 9).all()


def routing(**changes) -> RouterConfig:
    fields = {
        "scoring": "sigmoid", "experts": 12, "chosen": 3, "groups": 4, "chosen_groups": 2,
        "group_score": "top2_sum", "has_bias": True, "normalise": True, "scale": 2.5,
    }  # fmt: skip
    return RouterConfig(**(fields | changes))


def both(logits, bias, config: RouterConfig):
    scores = logits.sigmoid() if config.scoring == "sigmoid" else logits.softmax(-1)
    return router.choose(logits, bias, config), twin.choose(scores, bias, config)


CONFIGS = [
    routing(),
    routing(group_score="max", has_bias=False, scoring="softmax", normalise=False, scale=16.0),
    routing(groups=1, chosen_groups=1, experts=11, chosen=6),
    routing(experts=8, groups=8, chosen_groups=4, chosen=4),
    routing(experts=256, groups=8, chosen_groups=4, chosen=8),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_choice_is_the_twins(noise, config: RouterConfig) -> None:
    logits, bias = noise(9, config.experts), noise(config.experts) if config.has_bias else None
    (ids, weights), (expected_ids, expected_weights) = both(logits, bias, config)
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(weights, expected_weights)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=12, max_size=12), st.sampled_from(CONFIGS[:2]))
def test_ties_go_to_the_lowest_id(values: list[float], config: RouterConfig) -> None:
    logits = torch.tensor([values])
    bias = torch.zeros(12) if config.has_bias else None
    if torch.cuda.is_available():
        logits, bias = logits.cuda(), None if bias is None else bias.cuda()
    (ids, _), (expected, _) = both(logits, bias, config)
    assert torch.equal(ids, expected)


def test_a_dropped_group_never_wins_over_negative_biased_scores(noise, device) -> None:
    bias = torch.full((12,), -5.0, device=device)
    (ids, weights), (expected, _) = both(noise(5, 12), bias, routing())
    assert torch.equal(ids, expected)
    torch.testing.assert_close(weights.sum(-1), torch.full((5,), 2.5, device=device))


def test_the_bias_decides_below_the_resolution_of_bf16(device) -> None:
    logits = torch.zeros(1, 12, device=device)
    bias = torch.zeros(12, device=device)
    bias[11], bias[10], bias[5] = 3e-5, 2e-5, 1e-5
    ids, weights = router.choose(logits, bias, routing())
    assert ids.tolist() == [[11, 10, 5]]
    torch.testing.assert_close(weights, torch.full((1, 3), 2.5 / 3, device=device))
