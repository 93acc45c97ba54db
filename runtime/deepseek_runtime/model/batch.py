"""What one step feeds to the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepBatch:
    """The tokens of one step, sequences packed one after another; every list has one entry per sequence.

    Position p of a sequence lies in cache slot `block_table[p // block_size] * block_size + p % block_size`.
    T may be 0: an idle step.
    """

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64; those of one sequence run on from its context length."""
    query_lens: list[int]
    """Tokens of each sequence in this step; they sum to T."""
    context_lens: list[int]
    """Tokens of each sequence that the cache held before this step."""
    block_tables: list[list[int]]
    """Cache blocks of each sequence, enough for context and query together."""
