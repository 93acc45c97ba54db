"""Padded decode steps against eager ones. A captured graph is stood in for by running the step again on its buffers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.graphs import DecodeGraphs, Shape, shapes, warm_up, why_eager
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights.load import load_model

BLOCK, BLOCKS = 4, 40
SCRATCH = BLOCKS - 1


def rerun(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What a graph does: the same work on the same addresses, the result in the same place."""
    output = function()
    return lambda: output.copy_(function()), output


class Counting:
    """A capture that counts its replays by the number of rows."""

    def __init__(self) -> None:
        self.replayed: list[int] = []

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, output = rerun(function)

        def counted() -> None:
            self.replayed.append(len(output))
            replay()

        return counted, output


def prompts(lengths: list[int]) -> StepBatch:
    """Sequences of these lengths, each in blocks of its own with room for eight tokens more."""
    tables, used = [], 0
    for length in lengths:
        size = -(-(length + 8) // BLOCK)
        tables.append(list(range(used, used + size))[::-1])
        used += size
    assert used <= SCRATCH
    generator = torch.Generator().manual_seed(2)
    return StepBatch(
        token_ids=torch.randint(2, 200, (sum(lengths),), generator=generator),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        query_lens=lengths,
        context_lens=[0] * len(lengths),
        block_tables=tables,
    )


def following(batch: StepBatch, queries: list[int]) -> StepBatch:
    """A decode step behind the prompts: so many tokens of each."""
    starts = batch.query_lens
    return StepBatch(
        token_ids=torch.arange(7, 7 + sum(queries)),
        positions=torch.cat([torch.arange(s, s + q) for s, q in zip(starts, queries, strict=True)]),
        query_lens=queries,
        context_lens=starts,
        block_tables=batch.block_tables,
    )


@pytest.fixture
def filled(v3_model: DeepSeekV3Model) -> Callable[[StepBatch], LatentCache]:
    def fill(batch: StepBatch) -> LatentCache:
        cache = LatentCache.create(v3_model.config, BLOCKS, BLOCK, torch.device("cpu"), torch.float32)
        v3_model.forward(batch, cache)
        return cache

    return fill


@pytest.mark.parametrize("queries", [[1], [1, 1, 1], [2, 2, 2], [1, 2, 1], [2]])
def test_a_padded_step_is_the_eager_one(v3_model, filled, queries: list[int]) -> None:
    prompt = prompts([9, 5, 14][: len(queries)])
    cache, step = filled(prompt), following(prompt, queries)
    graphs, counting = DecodeGraphs(v3_model, cache, most_blocks=8, scratch_block=SCRATCH), Counting()
    graphs.capture(shapes(4, speculative_tokens=1), counting)
    ours = graphs.forward(step, cache)
    assert counting.replayed == [{1: 1, 3: 4}[len(queries)] * max(queries)]

    eager_cache = filled(prompt)
    torch.testing.assert_close(ours, v3_model.forward(step, eager_cache), rtol=1e-4, atol=1e-5)
    owned = slice(0, SCRATCH * BLOCK)
    torch.testing.assert_close(cache.values[:, owned], eager_cache.values[:, owned], rtol=1e-4, atol=1e-5)


def test_nothing_of_one_step_is_left_in_the_next(v3_model, filled) -> None:
    prompt = prompts([9, 5, 14])
    cache = filled(prompt)
    graphs = DecodeGraphs(v3_model, cache, most_blocks=8, scratch_block=SCRATCH)
    graphs.capture([Shape(4, 2)], rerun)
    graphs.forward(following(prompt, [2, 2, 2]), cache)
    single = prompts([9])
    ours = graphs.forward(following(single, [1]), cache)
    expected = v3_model.forward(following(single, [1]), filled(single))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["prompt", "too many sequences", "table too long", "another cache", "nothing"])
def test_what_no_graph_holds_runs_as_it_is(v3_model, filled, case: str) -> None:
    prompt = prompts([9, 5, 14])
    cache, counting = filled(prompt), Counting()
    most_blocks = 3 if case == "table too long" else 8
    graphs = DecodeGraphs(v3_model, cache, most_blocks=most_blocks, scratch_block=SCRATCH)
    graphs.capture([Shape(2, 1)] if case == "too many sequences" else shapes(4), counting)
    step = prompt if case == "prompt" else following(prompt, [1, 1, 1])
    if case == "nothing":
        step = StepBatch(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), [], [], [])
    used = filled(prompt) if case == "another cache" else cache
    ours = graphs.forward(step, used)
    assert not counting.replayed
    assert torch.equal(ours, v3_model.forward(step, filled(prompt) if case != "prompt" else cache))


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({}, None),
        ({"wanted": False}, "--no-graphs"),
        ({"device": torch.device("cpu")}, "CPU"),
        ({"triton": False}, "without Triton"),
        ({"model": False}, "how many tokens travel"),
        ({"sums": False}, "neither NCCL's nor RCCL's"),
    ],
)
def test_steps_are_captured_only_where_everything_allows_it(missing: dict[str, Any], reason: str | None) -> None:
    everything = {"wanted": True, "device": torch.device("cuda", 1), "triton": True, "model": True, "sums": True}
    said = why_eager(**(everything | missing))
    assert said is None if reason is None else reason in str(said)


def test_shapes_double_up_to_the_most_sequences() -> None:
    assert shapes(5) == [Shape(1, 1), Shape(2, 1), Shape(4, 1), Shape(8, 1)]
    assert shapes(1, speculative_tokens=2) == [Shape(1, 1), Shape(1, 3)]


def test_warming_up_visits_every_doubling_and_the_most_that_the_cache_holds(v3_model, filled, monkeypatch) -> None:
    cache, forward, seen = filled(prompts([1])), v3_model.forward, []

    def watched(batch: StepBatch, used: LatentCache) -> Tensor:
        seen.append(batch.query_lens)
        return forward(batch, used)

    monkeypatch.setattr(v3_model, "forward", watched)
    warm_up(v3_model, cache, most_tokens=8)
    assert seen == [[1], [2], [4], [8]]
    seen.clear()
    warm_up(v3_model, cache, most_tokens=10_000)
    assert seen[-2:] == [[128], [BLOCKS * BLOCK]]


def test_what_warms_up_does_not_count_as_traffic(v3_folder: Path) -> None:
    class First(Group):
        """Rank 0 of two, the other of which has as much memory and adds nothing to what is computed."""

        world_size = 2

        def all_reduce_sum(self, tensor: Tensor) -> Tensor:
            return tensor + tensor.flip(0) if tensor.shape == (2,) else tensor

    model = load_model(v3_folder, First(), device=torch.device("cpu"), dtype=torch.float32)
    cache = LatentCache.create(model.config, BLOCKS, BLOCK, torch.device("cpu"), torch.float32)
    for forget in (False, True):
        warm_up(model, cache, most_tokens=8)
        if forget:
            model.forget_choices()
        assert (model.rebalance(threshold=math.inf).before > 1) is not forget
