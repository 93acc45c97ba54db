"""What a checkpoint folder holds, from the headers of its safetensors files: no tensor is read here.

Everything that can be wrong with the files is found before anything is loaded, and said at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_runtime.model.config import ModelConfig
from deepseek_runtime.model.sharding import Parameter, known_surplus, parameters

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
FP8 = "F8_E4M3"
ITEM_BYTES = {FP8: 1, "F8_E8M0": 1, "BF16": 2, "F16": 2, "F32": 4}
VECTOR_TYPES = ("BF16", "F16", "F32")
MATRIX_TYPES = (FP8, *VECTOR_TYPES)
SCALE_TYPES = ("F32", "BF16", "F8_E8M0")
MAX_HEADER_BYTES = 100 * 2**20
SHOWN = 50
"""Problems that a message lists in full; one lost shard of the real model makes hundreds."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded. The message has one line per problem."""

    @classmethod
    def listing(cls, folder: Path, problems: list[str]) -> CheckpointError:
        shown = problems[:SHOWN]
        if len(problems) > SHOWN:
            shown.append(f"… and {len(problems) - SHOWN} more")
        noun = "problem" if len(problems) == 1 else "problems"
        return cls("\n  ".join([f"{folder} cannot be loaded, {len(problems)} {noun}:", *shown]))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies, its first byte counted from the file's, and what it is; `dtype` as safetensors writes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


Index = dict[str, TensorInfo]


def read_index(folder: Path) -> Index:
    """All tensors of a checkpoint; CheckpointError lists files that are missing, truncated or not as the index says."""
    problems: list[str] = []
    promised = _promised(folder)
    found: Index = {}
    for name in sorted(set(promised.values())) if promised is not None else [SINGLE_NAME]:
        try:
            header = read_header(folder / name)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        listed = [tensor for tensor, file in (promised or {}).items() if file == name]
        problems += [
            f"{name}: {tensor} is in {INDEX_NAME} but not in the file" for tensor in listed if tensor not in header
        ]
        problems += [
            f"{tensor}: is in {found[tensor].file.name} and in {name}; remove the file that does not belong here"
            for tensor in sorted(header.keys() & found.keys())
        ]
        found |= header
    if problems:
        raise CheckpointError.listing(folder, problems)
    return found


def size_contradiction(folder: Path, index: Index) -> str | None:
    """A sentence where the index file promises another number of bytes than the files hold."""
    file = folder / INDEX_NAME
    metadata = json.loads(file.read_text(encoding="utf-8")).get("metadata") if file.exists() else None
    promised = metadata.get("total_size") if isinstance(metadata, dict) else None
    if promised is None or promised == (held := _data_bytes(index)):
        return None
    return f"{file}: total_size is {promised}, but the files hold {held} bytes of tensors; are they of one version?"


def _data_bytes(index: Index) -> int:
    """Bytes of the files behind their headers."""
    starts: dict[Path, int] = {}
    for info in index.values():
        starts[info.file] = min(info.offset, starts.get(info.file, info.offset))
    return sum(file.stat().st_size - start for file, start in starts.items())


def _promised(folder: Path) -> dict[str, str] | None:
    """The index's map from tensors to file names; None for a checkpoint of one file without an index."""
    file = folder / INDEX_NAME
    if not file.exists():
        if (folder / SINGLE_NAME).exists():
            return None
        raise CheckpointError(f"{folder}: there is neither {INDEX_NAME} nor {SINGLE_NAME}; is the download complete?")
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a safetensors index: {error}") from error
    if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
        raise CheckpointError(f"{file}: weight_map must map tensors to names of files in the same folder")
    return weight_map


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def read_header(file: Path) -> Index:
    """The tensors of one safetensors file; CheckpointError unless the file is exactly as long as its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file.name}: truncated or no safetensors file ({size:,} bytes)")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        index = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}
    except OSError as error:
        raise CheckpointError(f"{file.name}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file.name}: its header is damaged: {error}") from error
    if (expected := 8 + length + end) != size:
        raise CheckpointError(f"{file.name}: {size:,} bytes on disk, {expected:,} by its header; fetch it again")
    return index


def _tensor(file: Path, name: str, entry: dict[str, Any], start: int) -> TensorInfo:
    """An entry of a header; `start` is where the file's data begins."""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name} of type {dtype} and shape {list(shape)} cannot have {end - begin:,} bytes")
    return TensorInfo(file, dtype, shape, start + begin)


def check(config: ModelConfig, index: Index) -> list[str]:
    """Every tensor that is missing, unexpected, or not of the shape or type that the configuration implies."""
    expected = {parameter.name: parameter for parameter in parameters(config)}
    problems = [problem for parameter in expected.values() for problem in _problems(config, parameter, index)]
    scales = {p.scale_name for p in expected.values() if p.name not in index or index[p.name].dtype == FP8}
    known = expected.keys() | scales | known_surplus(config, index.keys())
    return problems + [f"{name}: unexpected tensor" for name in index if name not in known]


def _problems(config: ModelConfig, parameter: Parameter, index: Index) -> Iterator[str]:
    name, info = parameter.name, index.get(parameter.name)
    if info is None:
        yield f"{name}: missing"
        return
    if info.shape != parameter.shape:
        yield f"{name}: shape {list(info.shape)}, expected {list(parameter.shape)} by config.json"
    known = MATRIX_TYPES if len(parameter.shape) > 1 else VECTOR_TYPES
    if info.dtype not in known:
        yield f"{name}: type {info.dtype}, known are {', '.join(known)}"
    elif info.dtype == FP8:
        yield from _scale_problems(config, parameter, index)


def _scale_problems(config: ModelConfig, parameter: Parameter, index: Index) -> Iterator[str]:
    name, info = parameter.scale_name, index.get(parameter.scale_name)
    if config.fp8_block is None:
        yield f"{parameter.name}: FP8, but config.json has no quantization_config with its block size"
    elif info is None:
        yield f"{name}: missing, so that the FP8 values of {parameter.name} mean nothing"
    else:
        shape = tuple(math.ceil(n / b) for n, b in zip(parameter.shape, config.fp8_block, strict=False))
        if info.shape != shape:
            yield f"{name}: shape {list(info.shape)}, expected {list(shape)} for blocks of {list(config.fp8_block)}"
        if info.dtype not in SCALE_TYPES:
            yield f"{name}: type {info.dtype}, known are {', '.join(SCALE_TYPES)}"
