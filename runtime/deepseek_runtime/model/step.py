"""Where a step's tokens lie and what they see, computed once per step and read by every layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from deepseek_runtime.model.batch import StepBatch


@dataclass(frozen=True)
class Absorbed:
    """Sequences with few new tokens, padded into one batch. Padding repeats a sequence's last token, so results of
    repeated tokens are equal and may all be written back.

    `tokens_BQ` are rows of the step, each of which sees the first `lengths_BQ` positions of its sequence; position p
    lies in slot `blocks_BP[b, p // block_size] * block_size + p % block_size`. `context` is the longest length.
    """

    tokens_BQ: Tensor
    lengths_BQ: Tensor
    blocks_BP: Tensor
    block_size: int
    context: int
    covers_step: bool
    """Whether `tokens_BQ` is every token of the step in its order."""

    @cached_property
    def slots_BS(self) -> Tensor:
        """Slot of every position; what lies behind a sequence's length is any slot."""
        return _spread(self.blocks_BP, self.block_size)[:, : self.context]

    @cached_property
    def visible_BQS(self) -> Tensor:
        """Which positions a token sees."""
        positions = torch.arange(self.context, device=self.lengths_BQ.device)
        return positions < self.lengths_BQ.unsqueeze(-1)


@dataclass(frozen=True)
class Expanded:
    """One sequence with many new tokens: their range in the step, and the slots of its context with them."""

    start: int
    stop: int
    slots_S: Tensor


@dataclass(frozen=True)
class Step:
    """`slots_T` is where the latents of the step's tokens go, `rotations_T` [T, R / 2] complex64 their positions'."""

    slots_T: Tensor
    rotations_T: Tensor
    absorbed: Absorbed | None
    expanded: list[Expanded]


def plan_step(batch: StepBatch, rotations_T: Tensor, block_size: int, absorb_up_to: int) -> Step:
    """Lay out a step; sequences of at most `absorb_up_to` new tokens take the absorbed form of attention."""
    blocks_BP = _padded(batch.block_tables)
    starts = list(accumulate(batch.query_lens, initial=0))
    sequence_T = torch.repeat_interleave(torch.tensor(batch.query_lens))
    device = batch.positions.device
    blocks_BP, sequence_T = blocks_BP.to(device), sequence_T.to(device)
    few = [b for b, length in enumerate(batch.query_lens) if 0 < length <= absorb_up_to]
    many = [b for b, length in enumerate(batch.query_lens) if length > absorb_up_to]
    block_T = blocks_BP[sequence_T, batch.positions // block_size]
    return Step(
        slots_T=block_T * block_size + batch.positions % block_size,
        rotations_T=rotations_T,
        absorbed=_absorbed(batch, starts, blocks_BP, few, block_size) if few else None,
        expanded=[_expanded(batch, starts[b], b, blocks_BP[b], block_size) for b in many],
    )


def _padded(tables: list[list[int]]) -> Tensor:
    """Block tables [B, P], padded with block 0."""
    longest = max(map(len, tables))
    return torch.tensor([table + [0] * (longest - len(table)) for table in tables], dtype=torch.int64)


def _spread(blocks: Tensor, block_size: int) -> Tensor:
    """Slots [..., P · block size] of blocks [..., P]."""
    return (blocks.unsqueeze(-1) * block_size + torch.arange(block_size, device=blocks.device)).flatten(-2)


def _absorbed(batch: StepBatch, starts: list[int], blocks_BP: Tensor, few: list[int], block_size: int) -> Absorbed:
    device = blocks_BP.device
    queries = max(batch.query_lens[b] for b in few)
    tokens = [[starts[b] + min(q, batch.query_lens[b] - 1) for q in range(queries)] for b in few]
    tokens_BQ = torch.tensor(tokens, device=device)
    return Absorbed(
        tokens_BQ=tokens_BQ,
        lengths_BQ=batch.positions[tokens_BQ] + 1,
        blocks_BP=blocks_BP if len(few) == len(blocks_BP) else blocks_BP[torch.tensor(few, device=device)],
        block_size=block_size,
        context=max(batch.context_lens[b] + batch.query_lens[b] for b in few),
        covers_step=len(few) == len(blocks_BP) and all(length == queries for length in batch.query_lens),
    )


def _expanded(batch: StepBatch, start: int, index: int, blocks_P: Tensor, block_size: int) -> Expanded:
    length = batch.query_lens[index]
    return Expanded(start, start + length, _spread(blocks_P, block_size)[: batch.context_lens[index] + length])
