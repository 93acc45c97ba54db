"""llama.cpp from the sources inside llama-cpp-python, compiled for this very processor (5 to 12 minutes on 2 cores)."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.yardstick.console import logged, step
from benchmarks.yardstick.peers.tools import require_compiler, tools
from benchmarks.yardstick.places import cache_folder, making, require_disk

VERSION = "0.3.36"
_PACKAGE = f"llama-cpp-python=={VERSION}"
_TARGETS = ("llama-bench", "llama-batched-bench")
_OFF = ("CURL", "OPENSSL", "USE_PREBUILT_UI", "BUILD_UI", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP")
_FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-DLLAMA_{name}=OFF" for name in _OFF))
_GIGABYTES = 2.0


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """Where its sources and programs lie."""

    sources: Path
    programs: Path


def build() -> LlamaCpp:
    """Fetch and compile it unless that was done; BenchmarkError says what is missing."""
    root = cache_folder() / "llama.cpp"
    with making(root, " ".join([_PACKAGE, *_FLAGS, *_TARGETS])) as missing:
        if missing:
            require_compiler()
            require_disk(cache_folder(), _GIGABYTES, "Compiling llama.cpp")
            _unpack(root)
            _compile(root)
    return LlamaCpp(_sources(root), root / "build" / "bin")


def _unpack(root: Path) -> None:
    log = root.with_name("llama.cpp.log")
    with step(f"Fetching {_PACKAGE}"):
        pip = [tools()["pip"], "download", "--disable-pip-version-check", "--no-deps", "--dest", root]
        logged([*pip, "--no-binary", "llama-cpp-python", _PACKAGE], log)
        for archive in root.glob("*.tar.gz"):
            with tarfile.open(archive) as packed:
                packed.extractall(root, filter="data")
            archive.unlink()


def _compile(root: Path) -> None:
    log, build_folder = root.with_name("llama.cpp.log"), root / "build"
    with step("Compiling llama.cpp, once, for some minutes"):
        configure = [tools()["cmake"], "-S", _sources(root), "-B", build_folder, "-G", "Ninja", *_FLAGS]
        logged([*configure, f"-DCMAKE_MAKE_PROGRAM={tools()['ninja']}"], log)
        logged([tools()["cmake"], "--build", build_folder, "--target", *_TARGETS], log)


def _sources(root: Path) -> Path:
    return root / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
