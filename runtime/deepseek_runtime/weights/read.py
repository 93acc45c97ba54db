"""Reads slices of safetensors files into tensors that are there already, in threads and by positional reads.

What needs no conversion goes from the page cache straight to its place; the rest passes a small buffer of its thread.
Nothing is mapped, so nothing but the weights stays resident, and files are visited in order, as disks like it.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepseek_runtime.model.parallelize import Slice
from deepseek_runtime.weights.index import ITEM_BYTES, CheckpointError, TensorInfo

TYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
THREADS = 8
"""Enough, also on two cores, that some wait for the disk while others wait for the interpreter or convert; each costs a
buffer and what a conversion makes of it."""
BATCH_BYTES = 2**20
"""What a thread takes at a time: enough that handing out costs little, little enough that together they still read a
file from its beginning to its end, as the kernel's read-ahead expects: it keeps the disk busy between the reads."""
HOST_STAGING_BYTES = 2**17
"""Fits into a core's cache, with what a conversion makes of it."""
DEVICE_STAGING_BYTES = 4 * 2**20
HUGE_PAGE_BYTES = 2**21

Convert = Callable[[Tensor, range], Tensor]
"""Turns a chunk of stored values, of the given rows of the checkpoint's tensor, into what belongs in memory."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One slice of a file and its place. Without `convert` the values only change their type, or not even that."""

    name: str
    source: TensorInfo
    cut: Slice
    into: Tensor
    convert: Convert | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes to read of one row; a vector's rows are its elements."""
        return math.prod(self.cut.shape[1:]) * ITEM_BYTES[self.source.dtype]

    @property
    def nbytes(self) -> int:
        return self.row_bytes * len(self.cut.rows)

    @property
    def direct(self) -> bool:
        """Whether the file's bytes are the bytes in memory."""
        return self.convert is None and self.into.is_cpu and self.into.dtype == TYPES[self.source.dtype]


@dataclass(frozen=True, slots=True)
class _Chunk:
    transfer: Transfer
    rows: range

    @property
    def nbytes(self) -> int:
        return self.transfer.row_bytes * len(self.rows)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a tensor. Large ones on the CPU get huge pages: touching 4 KiB at a time takes longer than reading."""
    nbytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or nbytes < HUGE_PAGE_BYTES:
        return torch.empty(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(*shape)


class Files:
    """Opens each file once and reads slices of tensors, from any thread; closes all at the end of its `with`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str, source: TensorInfo, cut: Slice, into: Tensor) -> None:
        """Fill a contiguous CPU tensor with a slice's bytes; CheckpointError names tensor and file that fail."""
        item, *columns = ITEM_BYTES[source.dtype], *source.shape[1:]
        stride = item * math.prod(columns)
        begin = source.offset + cut.rows.start * stride + (cut.columns.start * item if cut.columns else 0)
        whole = into.view(torch.uint8).flatten().numpy().data
        width = len(whole) // len(cut.rows)
        try:
            descriptor = self._open(source.file)
            if width == stride:
                _read_fully(descriptor, whole, begin)
                return
            for row in range(len(cut.rows)):
                _read_fully(descriptor, whole[row * width : (row + 1) * width], begin + row * stride)
        except OSError as error:
            raise CheckpointError(f"{source.file}: {name} cannot be read: {error.strerror or error}") from error

    def load(self, name: str, source: TensorInfo, cut: Slice) -> Tensor:
        """A small slice as a new tensor of its stored type."""
        part = torch.empty(cut.shape, dtype=TYPES[source.dtype])
        self.read(name, source, cut, part)
        return part

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                descriptor = os.open(file, os.O_RDONLY)
                self._stack.callback(os.close, descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # doubles the kernel's read-ahead
                self._descriptors[file] = descriptor
            return self._descriptors[file]


def _read_fully(descriptor: int, into: memoryview, offset: int) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        if not count:
            raise OSError(f"the file ends {len(into) - done:,} bytes too early; fetch it again")
        done += count


def run(transfers: Iterable[Transfer], files: Files, device: torch.device, on_progress: Progress | None = None) -> int:
    """Carry out all transfers, those of a file together; bytes read. `on_progress` gets bytes read and to read.

    Whatever fails stops the rest and is raised.
    """
    ordered = sorted(transfers, key=lambda transfer: (transfer.source.file, transfer.source.offset))
    total, done = sum(transfer.nbytes for transfer in ordered), 0
    worker = _Worker(files, device, max((transfer.row_bytes for transfer in ordered), default=0))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="load", initializer=worker.prepare) as pool:
        try:
            for count in pool.map(worker.read, _batches(ordered, device)):
                done += count
                if on_progress:
                    on_progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


def _batches(transfers: Iterable[Transfer], device: torch.device) -> Iterator[list[_Chunk]]:
    batch: list[_Chunk] = []
    size = 0
    for transfer in transfers:
        for chunk in _chunks(transfer, device):
            batch.append(chunk)
            size += chunk.nbytes
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _chunks(transfer: Transfer, device: torch.device) -> Iterator[_Chunk]:
    """Rows that are read at once: many where they go straight to their place, else what the buffer holds."""
    bound = BATCH_BYTES if transfer.direct else _staging_bytes(device)
    step = max(bound // transfer.row_bytes, 1)
    rows = transfer.cut.rows
    for start in range(rows.start, rows.stop, step):
        yield _Chunk(transfer, range(start, min(start + step, rows.stop)))


def _staging_bytes(device: torch.device) -> int:
    return HOST_STAGING_BYTES if device.type == "cpu" else DEVICE_STAGING_BYTES


class _Worker:
    """What the threads run: each has one buffer, pinned where a GPU copies from it."""

    def __init__(self, files: Files, device: torch.device, widest_row: int) -> None:
        self._files = files
        self._device = device
        self._size = max(_staging_bytes(device), widest_row)
        self._own = threading.local()

    def prepare(self) -> None:
        """Called first on each thread: without its device, a thread's pinned memory would wake up GPU 0."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def read(self, chunks: list[_Chunk]) -> int:
        for chunk in chunks:
            self._read(chunk.transfer, chunk.rows)
        return sum(chunk.nbytes for chunk in chunks)

    def _read(self, transfer: Transfer, rows: range) -> None:
        cut = Slice(rows, transfer.cut.columns)
        first = rows.start - transfer.cut.rows.start
        place = transfer.into[first : first + len(rows)]
        if transfer.direct:
            self._files.read(transfer.name, transfer.source, cut, place)
            return
        nbytes = transfer.row_bytes * len(rows)
        stored = self._staging()[:nbytes].view(TYPES[transfer.source.dtype]).view(cut.shape)
        self._files.read(transfer.name, transfer.source, cut, stored)
        place.copy_(transfer.convert(stored.to(self._device), rows) if transfer.convert else stored)

    def _staging(self) -> Tensor:
        if not hasattr(self._own, "buffer"):
            pinned = self._device.type == "cuda"
            self._own.buffer = torch.empty(self._size, dtype=torch.uint8, pin_memory=pinned)
        buffer: Tensor = self._own.buffer
        return buffer
