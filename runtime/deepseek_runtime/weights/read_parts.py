"""Where each part of a rank's weights goes, and what happens to it on the way: the transfers that `read` carries out.

All memory is allocated before anything is read, experts in one stack from the beginning: joining them later would need
the memory twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight, decode_e4m3
from deepseek_runtime.model.parallelize import Shard, Slice
from deepseek_runtime.model.sharding import Parameter, Precision, parameters
from deepseek_runtime.weights.fp8 import FNUZ_SCALE, covering_blocks, fnuz_values, scale_blocks
from deepseek_runtime.weights.index import FP8, CheckpointError, Index, TensorInfo
from deepseek_runtime.weights.read import Convert, Files, Progress, Transfer, empty, run


@dataclass(frozen=True, slots=True)
class Scales:
    """The FP8 scales of a part: whole blocks, of which the part begins `offset` rows and columns inside the first."""

    source: TensorInfo
    block: tuple[int, int]
    cut: Slice
    offset: tuple[int, int]

    @classmethod
    def of(cls, cut: Slice, source: TensorInfo, block: tuple[int, int]) -> Scales:
        """Those that a slice of the values touches."""
        assert cut.columns is not None, "only matrices have blocks"
        rows, row = covering_blocks(cut.rows, block[0])
        columns, column = covering_blocks(cut.columns, block[1])
        return cls(source, block, Slice(rows, columns), (row, column))


@dataclass(frozen=True, slots=True)
class Part:
    """This rank's slice of one tensor, its FP8 scales, if it has any, and where in a stack of experts it belongs."""

    parameter: Parameter
    cut: Slice
    values: TensorInfo
    scales: Scales | None
    positions: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Target:
    """Where weights go and the type that they compute in; whether FP8 blocks stay as they are, and of which FP8."""

    device: torch.device
    dtype: torch.dtype
    keeps_fp8: bool = True
    fnuz: bool = False

    def holds_fp8(self, part: Part) -> bool:
        """Whether a part is FP8 in memory."""
        return self.keeps_fp8 and part.scales is not None and part.parameter.precision is Precision.AS_STORED

    def dense_type(self, part: Part) -> torch.dtype:
        """The type of a part that is not."""
        return torch.float32 if part.parameter.precision is Precision.FLOAT32 else self.dtype

    def bytes_held(self, part: Part) -> int:
        """Bytes of a part in memory, all its copies counted."""
        size, copies = math.prod(part.cut.shape), 1 if part.positions is None else len(part.positions)
        if self.holds_fp8(part) and part.scales:
            return copies * (size + math.prod(part.scales.cut.shape) * torch.float32.itemsize)
        return copies * size * self.dense_type(part).itemsize


def plan_parts(shard: Shard, index: Index) -> list[Part]:
    """What a rank reads."""
    return [part for parameter in parameters(shard.config) if (part := _part(shard, parameter, index))]


def _part(shard: Shard, parameter: Parameter, index: Index) -> Part | None:
    cut, block = shard.slice_of(parameter), shard.config.fp8_block
    if cut is None:
        return None
    values = index[parameter.name]
    positions = None if parameter.expert is None else tuple(shard.positions(parameter.expert))
    if values.dtype != FP8:
        return Part(parameter, cut, values, None, positions)
    assert block is not None, "checked with the index"
    return Part(parameter, cut, values, Scales.of(cut, index[parameter.scale_name], block), positions)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tensors under the hub's names, experts in stacks under a common one, and the bytes that were read for them."""

    weights: dict[str, Weight]
    bytes_read: int


def read_weights(parts: Iterable[Part], shard: Shard, target: Target, on_progress: Progress | None = None) -> Loaded:
    """Read the parts of a shard; its routed experts are stacked in the order of its slots."""
    weights: dict[str, Weight] = {}
    with Files() as files:
        transfers: list[Transfer] = []
        for part in parts:
            for place in _places(weights, part, len(shard.experts), target):
                transfers += _transfers(part, place, target, files)
        return Loaded(weights, run(transfers, files, target.device, on_progress))


def _places(weights: dict[str, Weight], part: Part, slots: int, target: Target) -> list[Weight]:
    """Where a part goes: its own entry of `weights`, or places in a stack of `slots` experts."""
    name = part.parameter.stack
    if part.positions is None:
        weights[name] = _empty(part, target)
        return [weights[name]]
    if name not in weights:
        weights[name] = _empty(part, target, slots)
    stack = weights[name]
    if isinstance(stack, Fp8Weight) != target.holds_fp8(part):
        what = "some experts of this layer are FP8 and some are not"
        raise CheckpointError(f"{part.parameter.name}: {what}, which only --weights compute can load")
    return [stack[position] for position in part.positions]


def _empty(part: Part, target: Target, *stack: int) -> Weight:
    shape = (*stack, *part.cut.shape)
    if not target.holds_fp8(part) or part.scales is None:
        return empty(shape, target.dense_type(part), target.device)
    values = empty(shape, torch.float8_e4m3fnuz if target.fnuz else torch.float8_e4m3fn, target.device)
    scale = empty((*stack, *part.scales.cut.shape), torch.float32, target.device)
    return Fp8Weight(values, scale, part.scales.block, part.scales.offset)


def _transfers(part: Part, place: Weight, target: Target, files: Files) -> Iterator[Transfer]:
    name, scales = part.parameter.name, part.scales
    if isinstance(place, Tensor):
        convert = _dequantisation(part, scales, target, files) if scales else None
        yield Transfer(name, part.values, part.cut, place, convert)
    elif scales:
        yield Transfer(name, part.values, part.cut, place.values, _to_fnuz if target.fnuz else None)
        double = _doubled if target.fnuz else None
        yield Transfer(part.parameter.scale_name, scales.source, scales.cut, place.scale, double)


def _to_fnuz(values: Tensor, _: range) -> Tensor:
    return fnuz_values(values)


def _doubled(scale: Tensor, _: range) -> Tensor:
    return scale.float() * FNUZ_SCALE


def _dequantisation(part: Part, scales: Scales, target: Target, files: Files) -> Convert:
    """Reads the scales that a chunk of rows needs, and applies them."""

    def dequantise(values: Tensor, rows: range) -> Tensor:
        own = Scales.of(Slice(rows, part.cut.columns), scales.source, scales.block)
        scale = files.load(part.parameter.scale_name, scales.source, own.cut).to(target.device).float()
        real = decode_e4m3(values)
        scale_blocks(real, scale, own.block, own.offset)
        return real

    return dequantise
