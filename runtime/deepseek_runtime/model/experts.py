"""Where the experts of one layer lie, and how often each was chosen: all of the layer that changes between steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ExpertTable:
    """Turns chosen experts into slots. `window` are the slots that it counts from 0; all others become -1.

    `copies` is the most copies that an expert may have, which keeps shapes the same whatever the placement. With
    `counts` it also counts choices.
    """

    def __init__(
        self, placement: Sequence[int], window: range, *, copies: int, device: torch.device, counts: bool
    ) -> None:
        experts = max(placement) + 1
        self._window = window
        self._copies = copies
        self._slots_EM = torch.empty(experts, copies, dtype=torch.int64, device=device)
        self.chosen_E = torch.zeros(experts, dtype=torch.int64, device=device)
        """How often each expert was chosen on this rank since `move` was called or this was reset."""
        self._counts = counts
        self._one = torch.ones(1, dtype=torch.int64, device=device)
        self.move(placement)

    @property
    def placement(self) -> list[int]:
        """The expert in each slot of all ranks."""
        return self._placement

    def move(self, placement: Sequence[int]) -> None:
        """Follow a new placement, in place: captured graphs go on with it."""
        self._placement = list(placement)
        self._identical = self._copies == 1 and self._placement == list(self._window)
        copies: list[list[int]] = [[] for _ in self._slots_EM]
        for slot, expert in enumerate(placement):
            copies[expert].append(slot - self._window.start if slot in self._window else -1)
        table = [[slots[column % len(slots)] for column in range(self._copies)] for slots in copies]
        self._slots_EM.copy_(torch.tensor(table))

    def locate(self, ids_TK: Tensor, first_row: int = 0) -> Tensor:
        """A slot [T, K] for each chosen expert. Rows take the copies of an expert in turn, from `first_row` on."""
        if self._counts:
            flat = ids_TK.flatten()
            self.chosen_E.scatter_add_(0, flat, self._one.expand(len(flat)))
        if self._identical:
            return ids_TK
        if self._copies == 1:
            return self._slots_EM[:, 0][ids_TK]
        rows_T = torch.arange(first_row, first_row + len(ids_TK), device=ids_TK.device)
        return self._slots_EM[ids_TK, (rows_T % self._copies).unsqueeze(1)]
