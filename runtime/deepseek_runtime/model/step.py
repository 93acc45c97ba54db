"""Where a step's tokens lie and what they see, computed once per step and read by every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.model.batch import StepBatch


@dataclass(frozen=True)
class Absorbed:
    """Sequences with few new tokens, padded into one batch. Padding repeats a sequence's last token, so results of
    repeated tokens are equal and may all be written back."""

    tokens_BQ: Tensor
    slots_BS: Tensor
    visible_BQS: Tensor


@dataclass(frozen=True)
class Expanded:
    """One sequence with many new tokens: their range in the step, and the slots of its context with them."""

    start: int
    stop: int
    slots_S: Tensor


@dataclass(frozen=True)
class Step:
    """`slots_T` is where the latents of the step's tokens go."""

    slots_T: Tensor
    rotations_T: Tensor
    absorbed: Absorbed | None
    expanded: list[Expanded]


def plan_step(batch: StepBatch, rotations_T: Tensor, block_size: int, absorb_up_to: int) -> Step:
    """Lay out a step; sequences of at most `absorb_up_to` new tokens take the absorbed form of attention."""
    device = batch.positions.device
    slots_BS = _slots(batch.block_tables, block_size).to(device)
    starts = [0]
    for length in batch.query_lens:
        starts.append(starts[-1] + length)
    sequence_T = torch.repeat_interleave(torch.tensor(batch.query_lens)).to(device)
    few = [b for b, length in enumerate(batch.query_lens) if 0 < length <= absorb_up_to]
    many = [b for b, length in enumerate(batch.query_lens) if length > absorb_up_to]
    return Step(
        slots_T=slots_BS[sequence_T, batch.positions],
        rotations_T=rotations_T,
        absorbed=_absorbed(batch, starts, slots_BS, few) if few else None,
        expanded=[
            Expanded(starts[b], starts[b + 1], slots_BS[b, : batch.context_lens[b] + batch.query_lens[b]]) for b in many
        ],
    )


def _slots(block_tables: list[list[int]], block_size: int) -> Tensor:
    """Slot of every position of every sequence [B, longest table · block size]; what lies behind a table is slot 0.."""
    longest = max(map(len, block_tables))
    padded = torch.tensor([table + [0] * (longest - len(table)) for table in block_tables], dtype=torch.int64)
    return (padded.unsqueeze(-1) * block_size + torch.arange(block_size)).flatten(1)


def _absorbed(batch: StepBatch, starts: list[int], slots_BS: Tensor, few: list[int]) -> Absorbed:
    device = slots_BS.device
    queries = max(batch.query_lens[b] for b in few)
    context = max(batch.context_lens[b] + batch.query_lens[b] for b in few)
    tokens = [[starts[b] + min(q, batch.query_lens[b] - 1) for q in range(queries)] for b in few]
    tokens_BQ = torch.tensor(tokens, device=device)
    rows = slots_BS if len(few) == len(starts) - 1 else slots_BS[torch.tensor(few, device=device)]
    visible_BQS = torch.arange(context, device=device) <= batch.positions[tokens_BQ].unsqueeze(-1)
    return Absorbed(tokens_BQ, rows[:, :context], visible_BQS)
