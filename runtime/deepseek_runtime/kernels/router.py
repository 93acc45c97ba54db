"""Which experts a token visits, and with what weight. All in float32: a rounded score picks another expert."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deepseek_runtime.model.config import RouterConfig


def route(x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """Ids [T, K] int64 and weights [T, K] float32 of the chosen experts, best first.

    Equal scores go to the lowest id, so that ranks that route the same bits agree.
    """
    logits: Tensor = functional.linear(x_TD.float(), weight_ED.float())
    scores = logits.sigmoid() if config.scoring == "sigmoid" else logits.softmax(dim=-1)
    return choose(scores, bias_E, config)


def choose(scores_TE: Tensor, bias_E: Tensor | None, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """Choose by biased scores within the best groups; weigh by the unbiased scores."""
    choice = scores_TE if bias_E is None else scores_TE + bias_E
    if config.groups > 1:
        choice = _mask_groups(choice, config)
    ids = _top(choice, config.chosen)
    weights = scores_TE.gather(-1, ids)
    if config.normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return ids, weights * config.scale


def _mask_groups(choice_TE: Tensor, config: RouterConfig) -> Tensor:
    """Minus infinity for the experts outside the best groups: zero would win over negative biased scores."""
    grouped = choice_TE.view(len(choice_TE), config.groups, -1)
    best = min(2, grouped.shape[-1]) if config.group_score == "top2_sum" else 1
    kept = _top(grouped.topk(best, dim=-1).values.sum(dim=-1), config.chosen_groups)
    dropped = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=kept.device).scatter_(-1, kept, False)
    return grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(-2)


def _top(values: Tensor, count: int) -> Tensor:
    """Indices of the largest values; unlike topk, a stable sort leaves equal ones in the order of their ids."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]
