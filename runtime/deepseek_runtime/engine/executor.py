"""The real model behind the runner's `Executor`: a plan becomes a packed batch, hidden states become logits."""

from __future__ import annotations

from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from deepseek_runtime.engine.step import StepPlan
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache


class Model(Protocol):
    """What is needed of a model."""

    def forward(self, batch: StepBatch, cache: LatentCache) -> Tensor:
        """Hidden states [T, H] of the batch's T tokens, whose latents are written to the cache."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] float32 of hidden states [N, H]."""
        ...


class ModelExecutor:
    """Runs plans on this rank's part of the model and its cache. Only the rank that `leads` computes logits."""

    def __init__(self, model: Model, cache: LatentCache, device: torch.device, *, leads: bool) -> None:
        self._model = model
        self._cache = cache
        self._device = device
        self._leads = leads

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Logits [N, V] float32 of the positions that the plan wants, in the order of its sequences."""
        hidden = self._model.forward(pack(plan, self._device), self._cache)
        return self._model.logits(hidden[logit_rows(plan)]) if self._leads else hidden


def pack(plan: StepPlan, device: torch.device) -> StepBatch:
    """The plan's tokens one sequence after another."""
    parts = plan.sequences
    token_ids = list(chain.from_iterable(part.token_ids for part in parts))
    positions = list(chain.from_iterable(range(part.start, part.start + len(part.token_ids)) for part in parts))
    return StepBatch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        query_lens=[len(part.token_ids) for part in parts],
        context_lens=[part.start for part in parts],
        block_tables=[list(part.block_table) for part in parts],
    )


def logit_rows(plan: StepPlan) -> list[int]:
    """Rows of the packed batch whose logits are wanted."""
    rows: list[int] = []
    end = 0
    for part in plan.sequences:
        end += len(part.token_ids)
        rows.extend(range(end - part.logits, end))
    return rows
