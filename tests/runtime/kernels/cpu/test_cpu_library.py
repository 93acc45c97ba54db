"""Where the library comes from: built beforehand, cached, compiled, or not at all."""

import ctypes
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deepseek_runtime.kernels.choose import choose_kernels
from deepseek_runtime.kernels.cpu import build, library
from deepseek_runtime.kernels.cpu.kernels import CpuKernels
from deepseek_runtime.kernels.reference import TorchKernels

CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C++ compiler here")
needs_avx512 = pytest.mark.skipif(
    not library.cpu_features().issuperset(build.FEATURES), reason="this CPU cannot run the kernels"
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache, and no library that another test loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "prebuilt.so")
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.so"))


def build_one(sources: Path, output: Path) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    build.build(compiler, output, sources)


@needs_compiler
@needs_avx512
def test_the_first_start_compiles_and_the_second_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_kernels(CPU, torch.float32), CpuKernels)
    (built,) = libraries(tmp_path)
    assert built.parent == library.cache_folder()
    library.load_library.cache_clear()

    def unwanted(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(library, "build", unwanted)
    assert isinstance(choose_kernels(CPU, torch.bfloat16), CpuKernels)


@needs_compiler
def test_several_ranks_may_build_at_once(tmp_path: Path) -> None:
    sources, output = tmp_path / "src", tmp_path / "one.so"
    sources.mkdir()
    (sources / "answer.cpp").write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 42; }')
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=build_one, args=(sources, output)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0, 0, 0]
    assert libraries(tmp_path) == [output], "nothing unfinished is left"
    assert ctypes.CDLL(str(output)).answer() == 42


@needs_avx512
@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dsv3").write_text("a file where the folder should be")
    assert type(choose_kernels(CPU, torch.float32)) is TorchKernels
    assert f"{library.cache_folder()} cannot be written: Not a directory" in caplog.text


@needs_compiler
@needs_avx512
def test_a_library_built_beforehand_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", build.__name__, "--output", str(tmp_path / "prebuilt.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/prebuilt.so\n"
    monkeypatch.setenv("PATH", "")
    assert isinstance(choose_kernels(CPU, torch.float32), CpuKernels)


@needs_avx512
def test_without_a_compiler_torch_computes_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    assert type(choose_kernels(CPU, torch.float32)) is TorchKernels
    (record,) = caplog.records
    assert "no C++ compiler on PATH" in record.getMessage()


@needs_avx512
def test_a_compiler_that_fails_is_named_with_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'simd.h:1: fatal error: immintrin.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    assert type(choose_kernels(CPU, torch.float32)) is TorchKernels
    assert f"{broken} failed: simd.h:1: fatal error: immintrin.h" in caplog.text
    assert not libraries(tmp_path), "nothing unfinished is left"


def test_a_cpu_without_the_instructions_gets_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "cpu_features", lambda: frozenset({"avx2", "fma", "bmi2"}))
    with caplog.at_level("INFO"):
        assert type(choose_kernels(CPU, torch.float32)) is TorchKernels
    assert "this CPU has no avx512f" in caplog.text


def test_another_compiler_or_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_text(f"#!/bin/sh\necho {path.name}\n")
        path.chmod(0o755)
    before = build.fingerprint(str(one))
    assert build.fingerprint(str(other)) != before
    (tmp_path / "src").mkdir()
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    assert build.fingerprint(str(one)) != before
