"""Reads one rank's slices of a checkpoint into a model: no other bytes, and FP8 stays FP8.

No rank waits for another here: a slow disk on one node must not run into a collective's timeout on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.choose import choose_kernels
from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.model.config import ConfigError, ModelConfig, load_config
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.model.parallelize import ParallelError, Shard, Slice
from deepseek_runtime.model.sharding import Parameter, Precision, parameters
from deepseek_runtime.weights.fp8 import covering_blocks
from deepseek_runtime.weights.index import (
    FP8,
    ITEM_BYTES,
    CheckpointError,
    Index,
    TensorInfo,
    check,
    has_mtp,
    read_index,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """This rank's slice of one tensor, and where its FP8 scales lie, if it has any."""

    parameter: Parameter
    cut: Slice
    values: TensorInfo
    scale: TensorInfo | None

    @property
    def nbytes(self) -> int:
        """Bytes of the values to read; scales are a per mille."""
        return math.prod(self.cut.shape) * ITEM_BYTES[self.values.dtype]


def load_model(
    path: Path,
    group: Group,
    *,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Progress | None = None,
) -> DeepSeekV3Model:
    """This rank's part of the model in `path`, computing in `dtype`; `on_progress` gets bytes read and to read.

    Raises CheckpointError, before anything is read, with everything that is wrong with configuration and files.
    """
    try:
        config, index = inspect(path)
        shard = Shard.of(config, group.rank, group.world_size)
    except (ConfigError, ParallelError) as error:
        raise CheckpointError(str(error)) from error
    weights = read_weights(plan_parts(shard, index), shard, Target(device, dtype), on_progress)
    return DeepSeekV3Model(shard, weights, group, choose_kernels(device, dtype))


def inspect(path: Path) -> tuple[ModelConfig, Index]:
    """Configuration and tensors of a checkpoint that is complete and consistent.

    Where the MTP layer was dropped by whoever converted the checkpoint, the configuration returned has none.
    """
    config = load_config(path)
    index = read_index(path)
    if not has_mtp(config, index):
        config = replace(config, num_mtp_layers=0)
    if problems := check(config, index):
        raise CheckpointError.listing(path, problems)
    return config, index


def plan_parts(shard: Shard, index: Index) -> list[Part]:
    """What a rank reads, in the order of the files."""
    return sorted(_parts(shard, index), key=lambda part: part.values.file)


def _parts(shard: Shard, index: Index) -> Iterator[Part]:
    for parameter in parameters(shard.config):
        cut = shard.slice_of(parameter)
        if cut is not None:
            values = index[parameter.name]
            yield Part(parameter, cut, values, index[parameter.scale_name] if values.dtype == FP8 else None)


@dataclass(frozen=True, slots=True)
class Target:
    """Where weights go and the type that they compute in."""

    device: torch.device
    dtype: torch.dtype


def read_weights(
    parts: list[Part], shard: Shard, target: Target, on_progress: Progress | None = None
) -> dict[str, Weight]:
    """Read the parts of a shard; its routed experts are stacked in the order of their numbers."""
    weights: dict[str, Weight] = {}
    done, total = 0, sum(part.nbytes for part in parts)
    with ExitStack() as stack:
        reader = _Reader(stack, shard.config.fp8_block, target)
        for part in parts:
            weight = reader.read(part)
            name, expert = part.parameter.stack, part.parameter.expert
            if expert is None:
                weights[name] = weight
            else:
                if name not in weights:
                    weights[name] = _empty_stack(weight, len(shard.experts))
                _place(weights[name], expert - shard.experts.start, weight, part.parameter.name)
            done += part.nbytes
            if on_progress:
                on_progress(done, total)
    return weights


def _empty_stack(like: Weight, size: int) -> Weight:
    """Room for `size` weights such as one, allocated at once: joining them later would need the memory twice."""
    if isinstance(like, Tensor):
        return like.new_empty((size, *like.shape))
    values, scale = (part.new_empty((size, *part.shape)) for part in (like.values, like.scale))
    return replace(like, values=values, scale=scale)


def _place(stack: Weight, position: int, weight: Weight, name: str) -> None:
    if isinstance(stack, Fp8Weight) and isinstance(weight, Fp8Weight):
        stack.values[position].copy_(weight.values)
        stack.scale[position].copy_(weight.scale)
    elif isinstance(stack, Tensor) and isinstance(weight, Tensor):
        stack[position].copy_(weight)
    else:
        raise CheckpointError(f"{name}: some experts of this layer are FP8 and some are not, which is not built")


class _Reader:
    """Opens each file once, for as long as the stack lives."""

    def __init__(self, stack: ExitStack, block: tuple[int, int] | None, target: Target) -> None:
        self._stack = stack
        self._block = block
        self._target = target
        self._files: dict[Path, Any] = {}

    def read(self, part: Part) -> Weight:
        """One part in the precision that its parameter asks for, on the target device."""
        try:
            values = self._cut(part.values, part.parameter.name, part.cut)
            stored = values if part.scale is None else self._scaled(part, part.scale, values)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{part.values.file}: {part.parameter.name} cannot be read: {error}") from error
        if isinstance(stored, Fp8Weight) and part.parameter.precision is Precision.AS_STORED:
            return stored
        dtype = torch.float32 if part.parameter.precision is Precision.FLOAT32 else self._target.dtype
        return stored.dequantise(dtype) if isinstance(stored, Fp8Weight) else stored.to(dtype)

    def _scaled(self, part: Part, info: TensorInfo, values: Tensor) -> Fp8Weight:
        assert self._block is not None, "checked before anything is read"
        assert part.cut.columns is not None, "only matrices have blocks"
        rows, row = covering_blocks(part.cut.rows, self._block[0])
        columns, column = covering_blocks(part.cut.columns, self._block[1])
        scale = self._cut(info, part.parameter.scale_name, Slice(rows, columns))
        return Fp8Weight(values, scale.float(), self._block, (row, column))

    def _cut(self, info: TensorInfo, name: str, cut: Slice) -> Tensor:
        if info.file not in self._files:
            self._files[info.file] = self._stack.enter_context(safe_open(info.file, framework="pt"))
        view = self._files[info.file].get_slice(name)
        rows = slice(cut.rows.start, cut.rows.stop)
        part: Tensor = view[rows] if cut.columns is None else view[rows, cut.columns.start : cut.columns.stop]
        # A copy: what the file's memory map holds must neither stay mapped nor be strided.
        return part.to(self._target.device, copy=True).contiguous()
