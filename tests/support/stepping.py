"""Feeds token lists to a model in steps of chosen sizes, over a cache with shuffled blocks."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.model import DeepSeekV3Model

BLOCK_SIZE = 16


def new_cache(model: DeepSeekV3Model, tokens: int) -> LatentCache:
    """Room for `tokens` tokens."""
    return LatentCache.create(model.config, -(-tokens // BLOCK_SIZE) + 1, BLOCK_SIZE, model.device, model.dtype)


def block_table(cache: LatentCache, tokens: int, *, first: int = 0, seed: int = 0) -> list[int]:
    """Blocks for `tokens` tokens, from block `first` on, in an order that is not that of their numbers."""
    count = -(-tokens // BLOCK_SIZE)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert first + count <= cache.num_blocks
    return [first + int(block) for block in order]


def batch_of(parts: Iterable[tuple[list[int], int, list[int]]]) -> StepBatch:
    """One step of (new tokens, tokens already cached, block table) per sequence."""
    parts = list(parts)
    tokens = [token for new, _, _ in parts for token in new]
    positions = [cached + i for new, cached, _ in parts for i in range(len(new))]
    return StepBatch(
        token_ids=torch.tensor(tokens, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        query_lens=[len(new) for new, _, _ in parts],
        context_lens=[cached for _, cached, _ in parts],
        block_tables=[table for _, _, table in parts],
    )


def hidden_in_chunks(model: DeepSeekV3Model, tokens: list[int], chunks: Iterable[int], **cache: Any) -> Tensor:
    """Hidden states [T, D] of `tokens` fed in chunks; what the chunks leave over is fed one by one."""
    store = cache.get("cache") or new_cache(model, len(tokens))
    table = block_table(store, len(tokens))
    states, start = [], 0
    for size in [*chunks, *[1] * len(tokens)]:
        new = tokens[start : start + size]
        if new:
            states.append(model.forward(batch_of([(new, start, table)]), store))
            start += len(new)
    return torch.cat(states)


def logits_in_chunks(model: DeepSeekV3Model, tokens: list[int], chunks: Iterable[int]) -> Tensor:
    """Logits [T, V] of `tokens` fed in chunks, then one by one."""
    return model.logits(hidden_in_chunks(model, tokens, chunks))
