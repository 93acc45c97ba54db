"""`dsv3 convert --to fp8`: a checkpoint's projections as FP8 blocks, as DeepSeek's own are published.

A few rows of a tensor are in memory at a time, at least the 128 of a block. The new folder appears when it is complete.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepseek_runtime.model.config import ModelConfig
from deepseek_runtime.model.sharding import parameters
from deepseek_runtime.sizing import BLOCK
from deepseek_runtime.weights.index import FP8, INDEX_NAME, ITEM_BYTES, CheckpointError, Index, TensorInfo
from deepseek_runtime.weights.load import inspect
from deepseek_runtime.weights.read import TYPES
from deepseek_runtime.weights.write import Entry, nbytes, split, write_shards

FILE_BYTES = 5 * 10**9
CHUNK_BYTES = 2**20
CHUNK_COLUMNS = 32 * BLOCK
FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
QUANTISATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}
_KEPT = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "eh_proj.weight")
"""Matrices that stay: tables, the router, whose rounding picks other experts, and what joins the input of MTP."""

Report = Callable[[int, int], None]
"""Called with bytes written and to write."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done: matrices that became FP8, and bytes of all tensors as they were written."""

    matrices: int
    nbytes: int


def convert(source: Path, destination: Path, report: Report | None = None) -> Conversion:
    """Write the checkpoint of `source`, with FP8 projections, to a new folder.

    Raises CheckpointError for a checkpoint that is not whole or is FP8 already, and for a destination that holds
    something or has no room; nothing is left there then.
    """
    config, index = inspect(source)
    tensors = _tensors(config, index)
    total = sum(map(nbytes, tensors))
    _check(source, destination, config, total)
    with _new_folder(destination) as folder:
        done = 0
        for written in write_shards(folder, split(tensors, FILE_BYTES)):
            done += written
            if report:
                report(done, total)
        _write_config(source, folder)
        _copy_others(source, folder)
    return Conversion(sum(isinstance(tensor, _Quantised) for tensor in tensors), total)


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """E4m3 values [R, C] of a float32 matrix and the multiplier of each block; ragged blocks count as padded with 0."""
    rows, columns = matrix.shape
    missing = (0, -columns % BLOCK, 0, -rows % BLOCK)
    padded = pad(matrix, missing) if any(missing) else matrix
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    largest = torch.maximum(blocks.amax(dim=(1, 3)), -blocks.amin(dim=(1, 3)))
    scale = (largest / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    values = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).view_as(padded)
    return values[:rows, :columns].contiguous(), scale


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor that is copied as it is."""

    name: str
    info: TensorInfo

    @property
    def entries(self) -> list[Entry]:
        return [Entry(self.name, self.info.dtype, self.info.shape)]

    def chunks(self) -> Iterator[memoryview]:
        return map(memoryview, _read(self.name, self.info, CHUNK_BYTES))


@dataclass(frozen=True, slots=True)
class _Quantised:
    """A matrix that becomes FP8 values, with their scales behind them."""

    name: str
    info: TensorInfo

    @property
    def entries(self) -> list[Entry]:
        blocks = tuple(math.ceil(size / BLOCK) for size in self.info.shape)
        return [Entry(self.name, FP8, self.info.shape), Entry(f"{self.name}_scale_inv", "F32", blocks)]

    def chunks(self) -> Iterator[memoryview]:
        scales: list[Tensor] = []
        columns = self.info.shape[1]
        for raw in _read(self.name, self.info, BLOCK * columns * ITEM_BYTES[self.info.dtype]):
            values, scale = _quantise_rows(torch.frombuffer(raw, dtype=TYPES[self.info.dtype]).view(-1, columns))
            if not scale.isfinite().all():
                raise CheckpointError(f"{self.info.file}: {self.name} holds values that are no finite numbers")
            scales.append(scale)
            yield _bytes(values)
        yield _bytes(torch.cat(scales))


def _quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 values and scales of one row of blocks of the stored type; float32 are only some of its columns at a time."""
    parts = [quantise(part.float()) for part in torch.split(rows, CHUNK_COLUMNS, dim=1)]
    values, scales = zip(*parts, strict=True)
    return torch.cat([part.view(torch.uint8) for part in values], dim=1), torch.cat(scales, dim=1)


def _read(name: str, info: TensorInfo, size: int) -> Iterator[bytearray]:
    """The bytes of a tensor, up to `size` at a time."""
    left = math.prod(info.shape) * ITEM_BYTES[info.dtype]
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        while left:
            raw = bytearray(min(size, left))
            if stream.readinto(raw) != len(raw):
                raise CheckpointError(f"{info.file}: ends inside {name}, was it changed meanwhile?")
            left -= len(raw)
            yield raw


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).flatten().numpy().data


def _tensors(config: ModelConfig, index: Index) -> list[_Kept | _Quantised]:
    """What is to be written, in the order in which it is read."""
    matrices = {p.name for p in parameters(config) if len(p.shape) == 2 and not p.name.endswith(_KEPT)}
    ordered = sorted(index.items(), key=lambda item: (item[1].file, item[1].offset))
    return [_Quantised(name, info) if name in matrices else _Kept(name, info) for name, info in ordered]


def _check(source: Path, destination: Path, config: ModelConfig, total: int) -> None:
    """Refuse before anything is written."""
    if config.fp8_block:
        raise CheckpointError(f"{source}: is FP8 already, as its quantization_config says")
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise CheckpointError(f"{destination}: holds something; name a folder that is empty or not there yet")
    if destination.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{destination}: lies in the checkpoint that is to be converted")
    if _scratch(destination).exists():
        raise CheckpointError(f"{_scratch(destination)}: is left of a conversion that was ended; remove it first")
    destination.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(destination.parent).free) < total:
        raise CheckpointError(f"{destination}: needs {total / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there")


def _scratch(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.partial")


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside the destination that takes its name in the end, or vanishes."""
    folder = _scratch(destination)
    folder.mkdir()
    try:
        yield folder
        folder.rename(destination)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_config(source: Path, folder: Path) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "quantization_config": QUANTISATION}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _copy_others(source: Path, folder: Path) -> None:
    """Tokenizer, templates, licences: all but weights, and hidden files such as the marker of a verified download."""
    for path in source.iterdir():
        if path.name.startswith(".") or path.suffix == ".safetensors" or path.name in ("config.json", INDEX_NAME):
            continue
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, folder / path.name)
