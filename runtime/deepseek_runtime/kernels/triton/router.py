"""The choice of experts from router logits: one program a token does what takes plain torch a dozen launches."""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

import torch
from torch import Tensor

from deepseek_runtime.kernels.triton.language import inline, kernel, next_power, tl
from deepseek_runtime.model.config import RouterConfig


def choose(logits_TE: Tensor, bias_E: Tensor | None, config: RouterConfig) -> tuple[Tensor, Tensor]:
    """Ids [T, K] int64 and weights [T, K] float32 of float32 logits, best first; ties go to the lowest id."""
    tokens = len(logits_TE)
    ids = torch.empty(tokens, config.chosen, dtype=torch.int64, device=logits_TE.device)
    weights = torch.empty(tokens, config.chosen, dtype=torch.float32, device=logits_TE.device)
    per_group = config.experts // config.groups
    _choose[(tokens,)](
        logits_TE.contiguous(),
        logits_TE if bias_E is None else bias_E.float(),
        ids,
        weights,
        config.scale,
        GROUPS=config.groups,
        PER_GROUP=per_group,
        CHOSEN_GROUPS=config.chosen_groups,
        CHOSEN=config.chosen,
        BLOCK_G=next_power(config.groups, 1),
        BLOCK_E=next_power(per_group, 1),
        BLOCK_K=next_power(config.chosen, 1),
        BIAS=bias_E is not None,
        SIGMOID=config.scoring == "sigmoid",
        TOP_TWO=config.group_score == "top2_sum" and per_group > 1,
        NORMALISE=config.normalise,
    )
    return ids, weights


@kernel("scale")
def _choose(
    logits: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    scale: float,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
    CHOSEN: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr,
    SIGMOID: tl.constexpr,
    TOP_TWO: tl.constexpr,
    NORMALISE: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)
    member = tl.arange(0, BLOCK_E)
    expert = group[:, None] * PER_GROUP + member[None, :]
    inside = (group < GROUPS)[:, None] & (member < PER_GROUP)[None, :]
    logit = tl.load(logits + token * (GROUPS * PER_GROUP) + expert, mask=inside, other=float("-inf"))
    if SIGMOID:
        score = tl.sigmoid(logit)
    else:
        peak = tl.max(tl.max(logit, axis=1), axis=0)
        unnormed = tl.exp(logit - peak)
        score = unnormed / tl.sum(tl.sum(unnormed, axis=1), axis=0)
    choice = score
    if BIAS:
        choice += tl.load(bias + expert, mask=inside, other=0.0)
    choice = tl.where(inside, choice, float("-inf"))
    if GROUPS > 1:
        choice = _mask_groups(choice, group, member, GROUPS, CHOSEN_GROUPS, TOP_TWO)
    place = tl.arange(0, BLOCK_K)
    chosen_ids = tl.zeros((BLOCK_K,), dtype=tl.int32)
    chosen_weights = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for k in range(0, CHOSEN):
        best = tl.max(tl.max(choice, axis=1), axis=0)
        candidate = tl.where((choice == best) & inside, expert, GROUPS * PER_GROUP - 1)
        winner = tl.min(tl.min(candidate, axis=1), axis=0)
        weight = tl.sum(tl.sum(tl.where(expert == winner, tl.where(inside, score, 0.0), 0.0), axis=1), axis=0)
        chosen_ids = tl.where(place == k, winner, chosen_ids)
        chosen_weights = tl.where(place == k, weight, chosen_weights)
        choice = tl.where(expert == winner, float("-inf"), choice)
    if NORMALISE:
        chosen_weights /= tl.sum(chosen_weights, axis=0) + 1e-20
    kept = place < CHOSEN
    tl.store(ids + token * CHOSEN + place, chosen_ids.to(tl.int64), mask=kept)
    tl.store(weights + token * CHOSEN + place, chosen_weights * scale, mask=kept)


@inline
def _mask_groups(
    choice: tl.tensor,
    group: tl.tensor,
    member: tl.tensor,
    GROUPS: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
    TOP_TWO: tl.constexpr,
) -> tl.tensor:
    """Minus infinity outside the best groups."""
    merit = tl.max(choice, axis=1)
    if TOP_TWO:
        first = tl.argmax(choice, axis=1)
        merit += tl.max(tl.where(member[None, :] == first[:, None], float("-inf"), choice), axis=1)
    kept = group < 0
    for _ in range(0, CHOSEN_GROUPS):
        best = tl.max(merit, axis=0)
        winner = tl.min(tl.where((merit == best) & (group < GROUPS) & (kept == 0), group, GROUPS - 1), axis=0)
        kept = kept | (group == winner)
        merit = tl.where(group == winner, float("-inf"), merit)
    return tl.where(kept[:, None], choice, float("-inf"))
