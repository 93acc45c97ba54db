"""Decode steps as graphs: every launch of a step is recorded once per batch shape and replayed as one.

A replay reads the same addresses and does the same launches, so a step is padded to a captured shape: missing sequences
become a token of a scratch block, missing tokens of a sequence repeat its last one. All else that differs from step to
step (ids, positions, block tables) lies in buffers that are filled before the replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.step import Absorbed, Step

WARM_UP_RUNS = 2
"""Runs before a capture, in which kernels are compiled and libraries allocate their workspaces."""


class StepModel(Protocol):
    """What is needed of a model."""

    def forward(self, batch: StepBatch, cache: LatentCache) -> Tensor:
        """Hidden states [T, D] of any batch."""
        ...

    def rotations(self, positions_T: Tensor) -> Tensor:
        """[T, R / 2] complex64."""
        ...

    def run(self, token_ids_T: Tensor, step: Step, cache: LatentCache) -> Tensor:
        """Hidden states [T, D] of a step that is laid out already; without a look at any value on the host."""
        ...


def why_eager(*, wanted: bool, device: torch.device, triton: bool, model: bool, sums: bool) -> str | None:
    """Why decode steps must be launched kernel by kernel; None where they can be captured.

    `triton` says whether the model has Triton's kernels, `model` and `sums` whether it and its group can be captured.
    """
    reasons = {
        "--no-graphs says so": not wanted,
        "a CPU has none": device.type == "cpu",
        "without Triton the number of tokens of each expert is looked at on the host": not triton,
        "how many tokens travel between ranks is looked at on the host": not model,
        "the group's sums are neither NCCL's nor RCCL's": not sums,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records what a function launches; what replays it, and the tensor that every replay leaves its result in."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A batch of `sequences`, each with `queries` tokens."""

    sequences: int
    queries: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.queries


def shapes(most_sequences: int, speculative_tokens: int = 0) -> list[Shape]:
    """What to capture, ascending: 1, 2, 4, … sequences up to the first number that holds `most_sequences`.

    Sequences decode one token each, or verify all drafts.
    """
    doublings = math.ceil(math.log2(most_sequences)) if most_sequences > 1 else 0
    queries = sorted({1, 1 + speculative_tokens})
    return [Shape(2**power, count) for power in range(doublings + 1) for count in queries]


class Inputs:
    """The buffers that one captured shape reads. `blocks_BP` has room for the longest sequence there may be."""

    def __init__(self, shape: Shape, cache: LatentCache, most_blocks: int, scratch_block: int) -> None:
        device = cache.values.device
        self.shape = shape
        self._block_size = cache.block_size
        self._scratch_block = scratch_block
        self._tokens_2T = torch.zeros(2, shape.tokens, dtype=torch.int64, device=device)
        self._blocks_BP = torch.full((shape.sequences, most_blocks), scratch_block, device=device)
        self._rows_BQ = torch.arange(shape.tokens, device=device).view(shape.sequences, shape.queries)

    @property
    def token_ids_T(self) -> Tensor:
        return self._tokens_2T[0]

    def fill(self, batch: StepBatch) -> None:
        """Lay a batch out in the buffers, padded to their shape."""
        rows = torch.tensor(list(self._padded_rows(batch)), device=batch.token_ids.device)
        idle = self.shape.tokens - len(rows)
        tokens_2T = torch.stack((batch.token_ids, batch.positions))[:, rows]
        self._tokens_2T.copy_(torch.nn.functional.pad(tokens_2T, (0, idle)))
        longest = max(map(len, batch.block_tables))
        tables = [table + [0] * (longest - len(table)) for table in batch.block_tables]
        tables += [[self._scratch_block] * longest] * (self.shape.sequences - len(tables))
        self._blocks_BP[:, :longest].copy_(torch.tensor(tables))

    def step(self, rotations: Callable[[Tensor], Tensor]) -> Step:
        """The step that lies in the buffers, computed on the device."""
        positions_T, size = self._tokens_2T[1], self._block_size
        positions_BQ = positions_T.view(self.shape.sequences, self.shape.queries)
        slots_BQ = self._blocks_BP.gather(1, positions_BQ // size) * size + positions_BQ % size
        absorbed = Absorbed(
            tokens_BQ=self._rows_BQ,
            lengths_BQ=positions_BQ + 1,
            blocks_BP=self._blocks_BP,
            block_size=size,
            context=self._blocks_BP.shape[1] * size,
            covers_step=True,
        )
        return Step(slots_BQ.flatten(), rotations(positions_T), absorbed, [])

    def _padded_rows(self, batch: StepBatch) -> Iterator[int]:
        """Rows of the batch in the order of the buffers."""
        ends = accumulate(batch.query_lens)
        for end, length in zip(ends, batch.query_lens, strict=True):
            yield from (end - length + min(query, length - 1) for query in range(self.shape.queries))


@dataclass(frozen=True, slots=True)
class _Captured:
    inputs: Inputs
    replay: Callable[[], None]
    output_TD: Tensor


class DecodeGraphs:
    """A model whose decode steps are replayed; it runs all other steps, and those of no captured shape, as they are.

    `most_blocks` is the length of the longest block table, `scratch_block` a block of the cache that no sequence owns.
    With more than one rank, all must capture the same shapes, and the group's sums must be capturable: those of NCCL
    and RCCL are, gloo's and an all-to-all whose sizes the host must know are not.
    """

    def __init__(self, model: StepModel, cache: LatentCache, most_blocks: int, scratch_block: int) -> None:
        self._model = model
        self._cache = cache
        self._most_blocks = most_blocks
        self._scratch_block = scratch_block
        self._captured: dict[Shape, _Captured] = {}

    @torch.inference_mode()
    def capture(self, wanted: Sequence[Shape], capture: Capture) -> None:
        """Record steps of these shapes, the largest first, so that the smaller ones reuse its memory."""
        for shape in sorted(wanted, key=lambda shape: shape.tokens, reverse=True):
            inputs = Inputs(shape, self._cache, self._most_blocks, self._scratch_block)
            replay, output = capture(lambda inputs=inputs: self._run(inputs))  # type: ignore[misc]
            self._captured[shape] = _Captured(inputs, replay, output)

    @torch.inference_mode()
    def forward(self, batch: StepBatch, cache: LatentCache) -> Tensor:
        """Hidden states [T, D] of the batch's tokens, as `StepModel.forward` gives them."""
        captured = self._find(batch) if cache is self._cache else None
        if captured is None:
            return self._model.forward(batch, cache)
        captured.inputs.fill(batch)
        captured.replay()
        return captured.output_TD[_real_rows(batch, captured.inputs.shape.queries)]

    def _run(self, inputs: Inputs) -> Tensor:
        return self._model.run(inputs.token_ids_T, inputs.step(self._model.rotations), self._cache)

    def _find(self, batch: StepBatch) -> _Captured | None:
        """The smallest captured shape that holds the batch."""
        lengths = batch.query_lens
        if not lengths or min(lengths) == 0 or max(map(len, batch.block_tables)) > self._most_blocks:
            return None
        fitting = [
            shape for shape in self._captured if shape.sequences >= len(lengths) and shape.queries >= max(lengths)
        ]
        return self._captured[min(fitting, key=lambda shape: shape.tokens)] if fitting else None


def warm_up(model: StepModel, cache: LatentCache, most_tokens: int) -> None:
    """Run prompts of 1, 2, 4, … and `most_tokens` tokens, so that no request waits for a kernel to be compiled.

    Kernels have a variant per size of tile, which doublings all visit; the last one takes as much memory as any. The
    cache is written from its first block on. All ranks of a group call it alike, before they serve.
    """
    room = min(most_tokens, cache.num_blocks * cache.block_size)
    for length in sorted({*(2**power for power in range(room.bit_length())), room}):
        positions = torch.arange(length, device=cache.values.device)
        blocks = list(range(-(-length // cache.block_size)))
        model.forward(StepBatch(torch.zeros_like(positions), positions, [length], [0], [blocks]), cache)


def gpu_capture() -> Capture:
    """Capture in a CUDA or HIP graph; those made by one result share a memory pool."""
    pool = torch.cuda.graph_pool_handle()

    def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = function()
        return graph.replay, output

    return capture


def _real_rows(batch: StepBatch, queries: int) -> slice | list[int]:
    """Where the batch's own tokens lie in the padded step."""
    if all(length == queries for length in batch.query_lens):
        return slice(0, len(batch.query_lens) * queries)
    return [b * queries + query for b, length in enumerate(batch.query_lens) for query in range(length)]
