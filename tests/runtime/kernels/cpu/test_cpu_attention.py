"""Both forms of attention over a paged cache, in which the blocks of a sequence lie anywhere, against float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import kernel_definitions as definition
from deepseek_runtime.kernels.cpu.kernels import QUERIES, CpuKernels
from deepseek_runtime.kernels.interface import Expansion
from deepseek_runtime.model.step import Absorbed, Expanded
from kernel_definitions import Noise, assert_close

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
BLOCK = 16


class Heads(NamedTuple):
    count: int
    nope: int
    rope: int
    value: int
    latent: int


SHAPES = [Heads(16, 128, 64, 128, 512), Heads(5, 32, 16, 24, 48), Heads(3, 7, 4, 5, 9)]
each_shape = pytest.mark.parametrize("heads", SHAPES, ids=["V3", "small", "odd"])


def expansion(heads: Heads, noise: Noise, dtype: torch.dtype) -> Expansion:
    w_uk = noise(heads.count, heads.nope, heads.latent) * heads.latent**-0.5
    w_uv = noise(heads.count, heads.value, heads.latent) * heads.latent**-0.5
    return Expansion(w_uk.to(dtype), w_uv.to(dtype), (heads.nope + heads.rope) ** -0.5)


def queries(tokens: int, heads: Heads, noise: Noise, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As the model makes them: the first part a view of rows that hold both, the second rotated and apart."""
    both = noise(tokens, heads.count, heads.nope + heads.rope, dtype=dtype)
    return both[..., : heads.nope], both[..., heads.nope :].contiguous()


@each_shape
@pytest.mark.parametrize(
    ("contexts", "new"),
    [([1], 1), ([7, 300, 64], 1), ([4, 131], 4), ([2500], 2), ([90, 1100], QUERIES + 5)],
    ids=["first token", "batch", "drafts", "several parts", "slices"],
)
def test_absorbed_attention(
    heads: Heads, contexts: list[int], new: int, kernels: CpuKernels, noise: Noise, dtype: torch.dtype
) -> None:
    blocks = -(-max(contexts) // BLOCK)
    table = torch.randperm(len(contexts) * blocks, generator=torch.Generator().manual_seed(1)).view(-1, blocks)
    cache = noise(table.numel() * BLOCK, heads.latent + heads.rope, dtype=dtype)
    # A sequence with fewer new tokens than the others repeats its last.
    own = [min(new, context, 3 if row else new) for row, context in enumerate(contexts)]
    tokens = torch.tensor([[sum(own[:row]) + min(q, count - 1) for q in range(new)] for row, count in enumerate(own)])
    lengths = torch.tensor(
        [
            [context - count + 1 + min(q, count - 1) for q in range(new)]
            for context, count in zip(contexts, own, strict=True)
        ]
    )
    nope, rope = queries(sum(own), heads, noise, dtype)
    weights = expansion(heads, noise, dtype)
    part = Absorbed(tokens, lengths, table, BLOCK, max(contexts), covers_step=len(set(own)) == 1)
    out = kernels.absorbed_attention(nope, rope, cache, part, weights).view(len(contexts), new, heads.count, -1)
    for row, column in {(row, min(q, count - 1)) for row, count in enumerate(own) for q in (0, 1, new - 1)}:
        seen = torch.arange(int(lengths[row, column]))
        rows = cache[table[row, seen // BLOCK] * BLOCK + seen % BLOCK]
        token = tokens[row, column]
        expected = definition.attention(nope[token], rope[token], rows, weights)
        assert_close(out[row, column], expected, ROUNDING[dtype])
    assert torch.equal(out[-1, own[-1] - 1 :], out[-1, own[-1] - 1 : own[-1]].expand(new - own[-1] + 1, -1, -1))


@each_shape
@pytest.mark.parametrize(("tokens", "context"), [(1, 1), (9, 9), (70, 70), (13, 1100), (100, 2300)], ids=str)
def test_expanded_attention(
    heads: Heads, tokens: int, context: int, kernels: CpuKernels, noise: Noise, dtype: torch.dtype
) -> None:
    cache = noise(context + 40, heads.latent + heads.rope, dtype=dtype)
    slots = torch.randperm(len(cache), generator=torch.Generator().manual_seed(2))[:context]
    nope, rope = queries(tokens + 3, heads, noise, dtype)
    weights = expansion(heads, noise, dtype)
    out = kernels.expanded_attention(nope, rope, cache, Expanded(2, 2 + tokens, slots), weights)
    assert len(out) == tokens
    for t in {0, tokens // 2, tokens - 1}:
        rows = cache[slots[: context - tokens + t + 1]]
        assert_close(out[t], definition.attention(nope[2 + t], rope[2 + t], rows, weights), ROUNDING[dtype])
