"""The cases in which routers go wrong: leaking bias, zero masks, rounded bias, unordered ties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_runtime.kernels.router import choose, route
from deepseek_runtime.model.config import RouterConfig, parse_config
from tiny_checkpoint import v2_lite_config, v3_config

V3: RouterConfig = parse_config(v3_config(num_experts_per_tok=2)).router
"""8 experts in 4 groups, of which 2 are kept; 2 experts are chosen."""
UNGROUPED = parse_config(v3_config(n_group=1, topk_group=1, num_experts_per_tok=2)).router


def scores_of(*values: float) -> Tensor:
    return torch.tensor([values])


def test_the_bias_moves_the_choice_and_never_the_weights() -> None:
    scores = scores_of(0.9, 0.8, 0.1, 0.1, 0.5, 0.6, 0.1, 0.1)
    bias = torch.tensor([-1.0, 0, 0, 0, 0, 0, 0, 0])
    assert choose(scores, torch.zeros(8), V3)[0].tolist() == [[0, 1]]
    ids, weights = choose(scores, bias, V3)
    assert ids.tolist() == [[1, 5]], "group 0 with 0.9 - 1 + 0.8, group 2 with 1.1 are kept"
    expected = [2.5 * 0.8 / 1.4, 2.5 * 0.6 / 1.4]
    torch.testing.assert_close(weights, torch.tensor([expected]))


def test_dropped_groups_do_not_win_over_negative_scores() -> None:
    scores = torch.full((1, 8), 0.1)
    bias = torch.tensor([-0.3, -0.4, -0.5, -0.6, -0.2, -0.3, -0.9, -0.9])
    ids, _ = choose(scores, bias, V3)
    assert ids.tolist() == [[4, 0]], "all biased scores are negative: a zero mask would choose from dropped groups"


def test_bias_below_the_resolution_of_bfloat16_decides() -> None:
    bias = torch.full((8,), 0.5)
    bias[6] += 1e-5
    assert torch.equal(bias.bfloat16(), torch.full((8,), 0.5).bfloat16())
    ids, _ = choose(torch.full((1, 8), 0.25), bias, UNGROUPED)
    assert ids[0, 0] == 6


@pytest.mark.parametrize("config", [V3, UNGROUPED], ids=["grouped", "ungrouped"])
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_ties_go_to_the_lowest_id_at_every_place_of_a_batch(config: RouterConfig, tokens: int) -> None:
    ids, weights = choose(torch.full((tokens, 8), 0.5), torch.zeros(8), config)
    assert ids.tolist() == [[0, 1]] * tokens
    assert weights.tolist() == [[1.25, 1.25]] * tokens


def test_scores_are_computed_in_float32_from_lower_precision() -> None:
    x = torch.ones(1, 256, dtype=torch.bfloat16)
    weight = torch.zeros(8, 256)
    weight[3], weight[5] = 0.01, 0.0100001
    assert torch.equal(weight[3].bfloat16(), weight[5].bfloat16())
    ids, weights = route(x, weight, torch.zeros(8), UNGROUPED)
    assert ids.tolist() == [[5, 3]]
    assert weights.dtype == torch.float32


def test_v2_groups_count_by_their_best_expert_and_weights_are_not_normalised() -> None:
    config = parse_config(
        v2_lite_config(
            n_group=4,
            topk_group=1,
            topk_method="group_limited_greedy",
            num_experts_per_tok=2,
            routed_scaling_factor=16.0,
        )
    ).router
    scores = scores_of(0.2, 0.2, 0.3, 0.0, 0.1, 0.1, 0.1, 0.0)
    ids, weights = choose(scores, None, config)
    assert ids.tolist() == [[2, 3]], "0.3 is the best expert though 0.2 + 0.2 is the best pair"
    torch.testing.assert_close(weights, torch.tensor([[4.8, 0.0]]))


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
