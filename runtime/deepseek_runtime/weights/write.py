"""Writes safetensors files of tensors whose sizes are known before their bytes: the header, then chunk by chunk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deepseek_runtime.weights.index import INDEX_NAME, ITEM_BYTES

HEADER_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file to be written; `dtype` as safetensors writes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Source(Protocol):
    """Tensors that lie one behind the other in a file, and their bytes in that order."""

    @property
    def entries(self) -> Sequence[Entry]: ...

    def chunks(self) -> Iterator[memoryview]:
        """The bytes; each chunk is written before the next is asked for."""
        ...


def nbytes(source: Source) -> int:
    """Bytes of all tensors of a source."""
    return sum(entry.nbytes for entry in source.entries)


def split(sources: Iterable[Source], most: int) -> list[list[Source]]:
    """Sources in their order, in files of at most `most` bytes of tensors; one that is larger has a file of its own."""
    files: list[list[Source]] = []
    size = 0
    for source in sources:
        size += nbytes(source)
        if not files or size > most:
            files.append([])
            size = nbytes(source)
        files[-1].append(source)
    return files


def write_shards(folder: Path, files: Sequence[Sequence[Source]]) -> Iterator[int]:
    """Write all files and their index; yields the bytes of each chunk when it is written."""
    weight_map: dict[str, str] = {}
    for number, sources in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):06d}.safetensors"
        yield from _write(folder / name, sources)
        weight_map |= {entry.name: name for source in sources for entry in source.entries}
    total = sum(nbytes(source) for sources in files for source in sources)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(file: Path, sources: Sequence[Source]) -> Iterator[int]:
    with file.open("xb") as stream:
        stream.write(_header([entry for source in sources for entry in source.entries]))
        for source in sources:
            for chunk in source.chunks():
                yield stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())


def _header(entries: Sequence[Entry]) -> bytes:
    """Length and JSON, padded so that data begins aligned."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        fields[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
