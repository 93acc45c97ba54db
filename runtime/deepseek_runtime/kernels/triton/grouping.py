"""Which rows go through which expert, laid out on the device: no size ever travels to the host.

Assignments (token, choice) are sorted by expert and cut into tiles of one expert each. The number of tiles is the
worst case that sizes allow; those beyond the real ones are marked, and their programs end at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.kernels.triton.language import cdiv


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile i is rows `first[i]` to `first[i] + count[i]` of the sorted assignments, all of expert `expert[i]`.

    `order_A` is the assignment (token · K + choice) in each sorted place; assignments without an expert come last.
    Tiles without rows have count 0 and expert 0. `rows` is the most that a tile holds.
    """

    order_A: Tensor
    expert: Tensor
    first: Tensor
    count: Tensor
    rows: int

    def __len__(self) -> int:
        return len(self.expert)


def group_by_expert(slots_TK: Tensor, experts: int, rows: int) -> Tiles:
    """Tiles of at most `rows` assignments each; slot -1 is in no tile."""
    slots_A = slots_TK.flatten()
    key_A = torch.where(slots_A < 0, experts, slots_A)
    counts_E = torch.zeros(experts + 1, dtype=torch.int64, device=slots_A.device)
    counts_E = counts_E.scatter_add_(0, key_A, torch.ones_like(key_A))[:experts]
    tiles_E = (counts_E + rows - 1) // rows
    ends_E = tiles_E.cumsum(0)
    tile = torch.arange(most_tiles(slots_A.numel(), experts, rows), device=slots_A.device)
    expert = torch.searchsorted(ends_E, tile, right=True).clamp_(max=experts - 1)
    within = (tile - (ends_E - tiles_E)[expert]) * rows
    return Tiles(
        order_A=key_A.argsort(stable=True).int(),
        expert=expert.int(),
        first=((counts_E.cumsum(0) - counts_E)[expert] + within).int(),
        count=(counts_E[expert] - within).clamp_(0, rows).int(),
        rows=rows,
    )


def one_group(tokens: int, rows: int, device: torch.device) -> Tiles:
    """Tiles of a dense layer: every token goes through the only matrix."""
    first = torch.arange(0, tokens, rows, dtype=torch.int32, device=device)
    return Tiles(
        order_A=torch.arange(tokens, dtype=torch.int32, device=device),
        expert=torch.zeros_like(first),
        first=first,
        count=(tokens - first).clamp_(max=rows),
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
