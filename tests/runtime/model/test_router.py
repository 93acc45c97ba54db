"""Case 12: the ways in which routers go wrong. Leaking bias, zero masks, rounded bias, unordered ties.

Judged for the plain kernels and for those that this machine gets; x is chosen so that the router sees given scores.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_runtime.kernels.choose import choose_kernels
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.kernels.router import choose
from deepseek_runtime.model.config import RouterConfig, parse_config
from tiny_checkpoint import kimi_k2_config, v2_config, v2_lite_config, v3_config

V3: RouterConfig = parse_config(v3_config(num_experts_per_tok=2)).router
"""8 experts in 4 groups, of which 2 are kept; 2 experts are chosen."""
UNGROUPED = parse_config(v3_config(n_group=1, topk_group=1, num_experts_per_tok=2)).router
KERNELS = [TorchKernels(), choose_kernels(torch.device("cpu"), torch.float32)]
each_kernel = pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: type(kernels).__name__)


def route(kernels: Kernels, scores_TE: Tensor, bias_E: Tensor | None, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """Ids and weights for given scores: an identity as router weight turns x into logits."""
    logits = scores_TE.logit() if config.scoring == "sigmoid" else scores_TE.clamp(min=1e-9).log()
    return kernels.route(logits, torch.eye(scores_TE.shape[1]), bias_E, config)


@each_kernel
def test_the_bias_moves_the_choice_and_never_the_weights(kernels: Kernels) -> None:
    """Case 12 (a)."""
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.1, 0.5, 0.6, 0.1, 0.1]])
    bias = torch.tensor([-1.0, 0, 0, 0, 0, 0, 0, 0])
    assert route(kernels, scores, torch.zeros(8), V3)[0].tolist() == [[0, 1]]
    ids, weights = route(kernels, scores, bias, V3)
    assert ids.tolist() == [[1, 5]], "group 0 with 0.9 - 1 + 0.8, group 2 with 1.1 are kept"
    expected = [2.5 * 0.8 / 1.4, 2.5 * 0.6 / 1.4]
    torch.testing.assert_close(weights, torch.tensor([expected]))


@each_kernel
def test_dropped_groups_do_not_win_over_negative_scores(kernels: Kernels) -> None:
    """Case 12 (b): all biased scores are negative, so that a zero mask would choose from dropped groups."""
    bias = torch.tensor([-0.3, -0.4, -0.5, -0.6, -0.2, -0.3, -0.9, -0.9])
    ids, weights = route(kernels, torch.full((1, 8), 0.1), bias, V3)
    assert ids.tolist() == [[4, 0]]
    torch.testing.assert_close(weights, torch.tensor([[1.25, 1.25]]))


@each_kernel
def test_bias_below_the_resolution_of_bfloat16_decides(kernels: Kernels) -> None:
    """Case 12 (c)."""
    bias = torch.full((8,), 0.5)
    bias[6] += 1e-5
    assert torch.equal(bias.bfloat16(), torch.full((8,), 0.5).bfloat16())
    ids, _ = route(kernels, torch.full((1, 8), 0.25), bias, UNGROUPED)
    assert ids[0, 0] == 6


@each_kernel
@pytest.mark.parametrize("config", [V3, UNGROUPED], ids=["grouped", "ungrouped"])
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_ties_go_to_the_lowest_id_at_every_place_of_a_batch(
    kernels: Kernels, config: RouterConfig, tokens: int
) -> None:
    """Case 12 (d): ranks that route the same bits agree without a word."""
    ids, weights = route(kernels, torch.full((tokens, 8), 0.5), torch.zeros(8), config)
    assert ids.tolist() == [[0, 1]] * tokens
    assert weights.tolist() == [[1.25, 1.25]] * tokens


@each_kernel
def test_ties_among_some_go_to_the_lowest_id_whatever_else_the_batch_holds(kernels: Kernels) -> None:
    """Case 12 (d): the third of three equal experts is left out, and the second of two equal groups."""
    tied = torch.tensor([0.2, 0.4, 0.2, 0.4, 0.2, 0.4, 0.2, 0.1])
    noise = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    for place in range(20):
        batch = noise.clone()
        batch[place] = tied
        assert route(kernels, batch, torch.zeros(8), UNGROUPED)[0][place].tolist() == [1, 3]
        assert route(kernels, batch, torch.zeros(8), V3)[0][place].tolist() == [1, 3]


@each_kernel
def test_scores_are_computed_in_float32_from_lower_precision(kernels: Kernels) -> None:
    x = torch.ones(1, 256, dtype=torch.bfloat16)
    weight = torch.zeros(8, 256)
    weight[3], weight[5] = 0.01, 0.0100001
    assert torch.equal(weight[3].bfloat16(), weight[5].bfloat16())
    ids, weights = kernels.route(x, weight, torch.zeros(8), UNGROUPED)
    assert ids.tolist() == [[5, 3]]
    assert weights.dtype == torch.float32


@each_kernel
def test_v2_groups_count_by_their_best_expert_and_weights_are_not_normalised(kernels: Kernels) -> None:
    config = parse_config(v2_config(topk_group=1, num_experts_per_tok=2)).router
    scores = torch.tensor([[0.2, 0.2, 0.3, 0.0, 0.1, 0.1, 0.1, 0.0]])
    ids, weights = route(kernels, scores, None, config)
    assert ids.tolist() == [[2, 3]], "0.3 is the best expert though 0.2 + 0.2 is the best pair"
    torch.testing.assert_close(weights, torch.tensor([[4.8, 0.0]]), atol=1e-6, rtol=1e-5)


CONFIGS = {
    name: parse_config(raw).router
    for name, raw in {"V3": v3_config(), "V2": v2_config(), "V2-Lite": v2_lite_config(), "K2": kimi_k2_config()}.items()
}


@each_kernel
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_random_tokens_are_routed_as_in_float64(kernels: Kernels, config: RouterConfig) -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight = (torch.randn(rows, 96, generator=generator) for rows in (300, config.experts))
    weight *= 0.3
    bias = torch.randn(config.experts, generator=generator) * 0.1 if config.has_bias else None
    ids, weights = kernels.route(x, weight, bias, config)
    logits = x.double() @ weight.double().T
    scores = logits.sigmoid() if config.scoring == "sigmoid" else logits.softmax(dim=-1)
    expected_ids, expected = choose(scores, None if bias is None else bias.double(), config)
    assert ids.equal(expected_ids)
    torch.testing.assert_close(weights, expected.float(), atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8),
    st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8),
)
def test_the_choice_is_that_of_the_definition(scores: list[float], bias: list[float]) -> None:
    s, b = torch.tensor(scores), torch.tensor(bias)
    choice = (s + b).tolist()
    pairs = [(torch.tensor(choice[g]) + torch.tensor(choice[g + 1])).item() for g in range(0, 8, 2)]
    kept = sorted(range(4), key=lambda g: (-pairs[g], g))[:2]
    masked = [c if e // 2 in kept else -math.inf for e, c in enumerate(choice)]
    expected = sorted(range(8), key=lambda e: (-masked[e], e))[:2]
    ids, weights = choose(s.unsqueeze(0), b, V3)
    assert ids[0].tolist() == expected
    chosen = s[expected]
    torch.testing.assert_close(weights[0], chosen / (chosen.sum() + 1e-20) * 2.5)
