"""Slices of files arrive whole in their places, whatever their shape, type, size and thread."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from deepseek_runtime.model.parallelize import Slice
from deepseek_runtime.weights.index import CheckpointError, read_header
from deepseek_runtime.weights.read import BATCH_BYTES, HOST_STAGING_BYTES, HUGE_PAGE_BYTES, Files, Transfer, empty, run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file with matrices of each type, the largest of several batches, and a vector."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3 * BATCH_BYTES // 4 // 1000, 1000, generator=generator)
    small = torch.randn(300, 700, generator=generator)
    tensors = {
        "wide": wide,
        "bf16": small.bfloat16(),
        "f16": small.half(),
        "fp8": small.to(torch.float8_e4m3fn),
        "e8m0": (2.0 ** torch.arange(-30, 30)).view(6, 10).to(torch.float8_e8m0fnu),
        "vector": torch.arange(200_000, dtype=torch.float32),
    }
    file = tmp_path_factory.mktemp("read") / "some.safetensors"
    save_file(tensors, file)
    return file, tensors


def whole(tensor: Tensor) -> Slice:
    return Slice(range(len(tensor)), range(tensor.shape[1]) if tensor.dim() > 1 else None)


def fetch(file: Path, name: str, cut: Slice, dtype: torch.dtype) -> Tensor:
    into = empty(cut.shape, dtype, CPU)
    with Files() as files:
        run([Transfer(name, read_header(file)[name], cut, into)], files, CPU)
    return into


@pytest.mark.parametrize("name", ["wide", "bf16", "f16", "fp8", "e8m0", "vector"])
def test_a_tensor_of_any_type_keeps_every_bit(name: str, stored: tuple[Path, dict[str, Tensor]]) -> None:
    file, tensors = stored
    expected = tensors[name]
    got = fetch(file, name, whole(expected), expected.dtype)
    assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("name", ["wide", "bf16", "f16", "e8m0", "vector"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_are_converted_in_pieces(name: str, dtype: torch.dtype, stored: tuple[Path, dict[str, Tensor]]) -> None:
    file, tensors = stored
    assert tensors["wide"].nbytes > 10 * HOST_STAGING_BYTES
    assert torch.equal(fetch(file, name, whole(tensors[name]), dtype), tensors[name].to(dtype))


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_slice_is_that_slice(stored: tuple[Path, dict[str, Tensor]], data: st.DataObject) -> None:
    file, tensors = stored
    name, dtype = (
        data.draw(st.sampled_from(["bf16", "f16"])),
        data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )
    top, left = data.draw(st.integers(0, 299)), data.draw(st.integers(0, 699))
    bottom, right = data.draw(st.integers(top + 1, 300)), data.draw(st.integers(left + 1, 700))
    got = fetch(file, name, Slice(range(top, bottom), range(left, right)), dtype)
    assert torch.equal(got, tensors[name][top:bottom, left:right].to(dtype))


def test_a_conversion_is_told_which_rows_it_gets(stored: tuple[Path, dict[str, Tensor]]) -> None:
    file, tensors = stored
    cut = Slice(range(1000, len(tensors["wide"])), range(10, 990))
    into = empty(cut.shape, torch.float32, CPU)

    def add_row_number(values: Tensor, rows: range) -> Tensor:
        return values + torch.tensor(rows).unsqueeze(1)

    with Files() as files:
        run([Transfer("wide", read_header(file)["wide"], cut, into, add_row_number)], files, CPU)
    expected = tensors["wide"] + torch.arange(len(tensors["wide"])).unsqueeze(1)
    assert torch.equal(into, expected[1000:, 10:990])


def test_progress_ends_with_all_bytes(stored: tuple[Path, dict[str, Tensor]]) -> None:
    file, tensors = stored
    index, seen = read_header(file), list[tuple[int, int]]()
    transfers = [Transfer(n, index[n], whole(t), torch.empty_like(t)) for n, t in tensors.items()]
    with Files() as files:
        read = run(transfers, files, CPU, lambda *progress: seen.append(progress))
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert read == total
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) >= math.floor(total / (2 * BATCH_BYTES))


def test_a_file_that_shrank_since_it_was_checked_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(100, 100), "b": torch.ones(100, 100)}, file)
    index = read_header(file)
    file.write_bytes(file.read_bytes()[:-1000])
    last = max(index, key=lambda name: index[name].offset)
    with Files() as files, pytest.raises(CheckpointError, match=rf"cut\.safetensors: {last} cannot .* 1,000 bytes too"):
        run(
            [Transfer(n, i, Slice(range(100), range(100)), torch.empty(100, 100)) for n, i in index.items()], files, CPU
        )


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gone.safetensors"
    save_file({"a": torch.ones(4, 4)}, file)
    index = read_header(file)
    file.unlink()
    with Files() as files, pytest.raises(CheckpointError, match=r"gone\.safetensors: a cannot be read: No such file"):
        run([Transfer("a", index["a"], Slice(range(4), range(4)), torch.empty(4, 4))], files, CPU)


def test_large_memory_is_plain_writable_memory() -> None:
    tensor = empty((3, HUGE_PAGE_BYTES), torch.bfloat16, CPU)
    assert tensor.shape == (3, HUGE_PAGE_BYTES)
    assert tensor.is_contiguous()
    assert not tensor.any()
    tensor[2, -1] = 1
    assert tensor.sum() == 1
