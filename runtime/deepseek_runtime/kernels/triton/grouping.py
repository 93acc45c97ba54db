"""Which rows go through which expert, laid out on the device: no size ever travels to the host.

Assignments (token, choice) are sorted by expert and cut into tiles of one expert each. The number of tiles is the
worst case that sizes allow; those beyond the real ones are marked, and their programs end at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.kernels.triton.language import cdiv, kernel, next_power, tl

FEW = 1024
"""Assignments up to which one launch compares them all; more are sorted, in a dozen launches."""
SHARE = 32
"""Assignments, and tiles, of one program of that launch."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile i is rows `first[i]` to `first[i] + count[i]` of the sorted assignments, all of expert `expert[i]`.

    `order_A` is the assignment (token · K + choice) in each sorted place; assignments without an expert come last,
    `used` [1] is how many have one, None for all. Tiles without rows have count 0 and expert 0. `rows` is the most that
    a tile holds.
    """

    order_A: Tensor
    expert: Tensor
    first: Tensor
    count: Tensor
    used: Tensor | None
    rows: int

    def __len__(self) -> int:
        return len(self.expert)


def group_by_expert(slots_TK: Tensor, experts: int, rows: int) -> Tiles:
    """Tiles of at most `rows` assignments each; slot -1 is in no tile."""
    slots_A = slots_TK.flatten()
    return _group_few(slots_A, experts, rows) if len(slots_A) <= FEW else group_by_sorting(slots_A, experts, rows)


def group_by_sorting(slots_A: Tensor, experts: int, rows: int) -> Tiles:
    """`group_by_expert` in plain torch."""
    key_A = torch.where(slots_A < 0, experts, slots_A)
    counts_E = torch.zeros(experts + 1, dtype=torch.int64, device=slots_A.device)
    counts_E = counts_E.scatter_add_(0, key_A, torch.ones_like(key_A))[:experts]
    rows_E = counts_E.cumsum(0)
    tiles_E = (counts_E + rows - 1) // rows
    ends_E = tiles_E.cumsum(0)
    tile = torch.arange(most_tiles(slots_A.numel(), experts, rows), device=slots_A.device)
    expert = torch.searchsorted(ends_E, tile, right=True).clamp_(max=experts - 1)
    within = (tile - (ends_E - tiles_E)[expert]) * rows
    return Tiles(
        order_A=key_A.argsort(stable=True).int(),
        expert=expert.int(),
        first=((rows_E - counts_E)[expert] + within).int(),
        count=(counts_E[expert] - within).clamp_(0, rows).int(),
        used=rows_E[-1:],
        rows=rows,
    )


def _group_few(slots_A: Tensor, experts: int, rows: int) -> Tiles:
    assignments, tiles = len(slots_A), most_tiles(len(slots_A), experts, rows)
    order_A = torch.empty(assignments, dtype=torch.int32, device=slots_A.device)
    plan_3T = torch.empty(3, tiles, dtype=torch.int32, device=slots_A.device)
    used = torch.empty(1, dtype=torch.int32, device=slots_A.device)
    _group[(cdiv(max(assignments, tiles), SHARE),)](
        slots_A, order_A, plan_3T, used, assignments, tiles, EXPERTS=experts, ROWS=rows, SHARE=SHARE,
        BLOCK_E=next_power(experts),
    )  # fmt: skip
    return Tiles(order_A, plan_3T[0], plan_3T[1], plan_3T[2], used, rows)


def one_group(tokens: int, rows: int, device: torch.device) -> Tiles:
    """Tiles of a dense layer: every token goes through the only matrix."""
    first = torch.arange(0, tokens, rows, dtype=torch.int32, device=device)
    return Tiles(
        order_A=torch.arange(tokens, dtype=torch.int32, device=device),
        expert=torch.zeros_like(first),
        first=first,
        count=(tokens - first).clamp_(max=rows),
        used=None,
        rows=rows,
    )


def most_tiles(assignments: int, experts: int, rows: int) -> int:
    """Tiles in the worst case: each expert that has any assignment may end with one that is not full."""
    visited = min(experts, assignments)
    return visited + (assignments - visited) // rows


def usual_rows(assignments: int, experts: int) -> int:
    """Rows of a tile that suit the average expert, so that neither padding nor re-reading of weights is large."""
    average = cdiv(assignments, experts)
    return next((rows for rows in (16, 32) if average <= rows), 64)


@kernel("assignments", "tiles")
def _group(  # noqa: PLR0913, PLR0917
    slots: tl.tensor,
    order: tl.tensor,
    plan: tl.tensor,
    used: tl.tensor,
    assignments: int,
    tiles: int,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    own = tl.program_id(0) * SHARE + tl.arange(0, SHARE)
    own_slot = tl.load(slots + own, mask=own < assignments, other=-1).to(tl.int32)
    own_key = tl.where(own_slot < 0, EXPERTS, own_slot)
    place = tl.zeros((SHARE,), dtype=tl.int32)
    expert = tl.arange(0, BLOCK_E)
    count = tl.zeros((BLOCK_E,), dtype=tl.int32)
    # A stable sort by counting: before an assignment lie those of lower experts, and earlier ones of its own.
    for start in range(0, assignments, SHARE):
        other = start + tl.arange(0, SHARE)
        slot = tl.load(slots + other, mask=other < assignments, other=-1).to(tl.int32)
        key = tl.where(slot < 0, EXPERTS, slot)
        is_before = (key[None, :] < own_key[:, None]) | (
            (key[None, :] == own_key[:, None]) & (other[None, :] < own[:, None])
        )
        place += tl.sum((is_before & (other < assignments)[None, :]).to(tl.int32), axis=1)
        count += tl.sum((slot[None, :] == expert[:, None]).to(tl.int32), axis=1)
    tl.store(order + place, own, mask=own < assignments)
    tiles_of = (count + ROWS - 1) // ROWS
    last_tile = tl.cumsum(tiles_of, axis=0)
    last_row = tl.cumsum(count, axis=0)
    # Tile by expert: whether the expert's tiles contain this one. Beyond the last real tile none do: all sums are 0.
    mine = (own[:, None] >= (last_tile - tiles_of)[None, :]) & (own[:, None] < last_tile[None, :])
    within = (own[:, None] - (last_tile - tiles_of)[None, :]) * ROWS
    left = tl.minimum(count[None, :] - within, ROWS)
    inside = own < tiles
    tl.store(plan + own, tl.sum(tl.where(mine, expert[None, :], 0), axis=1), mask=inside)
    tl.store(plan + tiles + own, tl.sum(tl.where(mine, (last_row - count)[None, :] + within, 0), axis=1), mask=inside)
    tl.store(plan + 2 * tiles + own, tl.sum(tl.where(mine, left, 0), axis=1), mask=inside)
    tl.store(used, tl.sum(count, axis=0), mask=tl.program_id(0) == 0)
