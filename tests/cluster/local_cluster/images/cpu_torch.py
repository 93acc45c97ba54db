"""Make PyPI's torch, which is linked to CUDA, a CPU-only torch: leave its GPU libraries out and satisfy the linker.

PyPI has no CPU build for Linux x86-64. Its torch needs 1.9 GB of NVIDIA libraries to be *loaded*, and 0.5 GB of its own
GPU kernels, though nothing of them runs without a GPU. In their place come tiny libraries of the same names whose
functions say that there is no GPU: `torch.cuda.is_available()` is False, and any other call ends the process with the
function's name. Nothing of the CPU side is touched.
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..errors import ClusterError

# torch's own libraries of GPU code; all but the first are only opened when a GPU is used.
_GPU_LIBRARIES = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_nvshmem.so", "libcaffe2_nvrtc.so")
_NVIDIA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
_NVIDIA_FUNCTION = re.compile(r"(cu|nv|nccl)[A-Za-z]+$")
# What is asked before any GPU is used: no device (error 100), no driver, no error pending.
_ANSWERS = {
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 0; return 100; }",
    "cudaDriverGetVersion": "int cudaDriverGetVersion(int *v) { *v = 0; return 0; }",
    "cudaRuntimeGetVersion": "int cudaRuntimeGetVersion(int *v) { *v = 0; return 0; }",
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
    "cudaPeekAtLastError": "int cudaPeekAtLastError(void) { return 0; }",
    "cudaGetErrorString": 'const char *cudaGetErrorString(int e) { return "no GPU support in this image"; }',
}
# libtorch_python calls these while it is loaded: the first gives it a place to store a pointer; the second makes the
# default argument of a constructor, zeroed here so that it can be destroyed, and never used.
_AT_LOAD = {
    "_ZN4c10d15get_gil_checkerEv": "void *_ZN4c10d15get_gil_checkerEv(void) { static void *slot; return &slot; }",
    "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb": """#include <malloc.h>
#include <string.h>
extern char _ZTVN4c10d16ProcessGroupNCCL7OptionsE[];
void _ZN4c10d16ProcessGroupNCCL7OptionsC1Eb(void **options) {
    memset(options, 0, malloc_usable_size(options));
    *options = _ZTVN4c10d16ProcessGroupNCCL7OptionsE + 16;
}""",
}
_CPU_BUILD = (
    ("version.py", r"cuda: Optional\[str\] = '.*'", "cuda: Optional[str] = None"),
    ("backends/cuda/__init__.py", r"return torch\._C\._has_cuda", "return False"),
)
_REFUSAL = """#include <stdio.h>
#include <stdlib.h>
static void refuse(const char *name) {
    fprintf(stderr, "%s was called, but this image has no GPU support\\n", name);
    abort();
}
extern char _ZTVN10__cxxabiv117__class_type_infoE[];
"""


@dataclass(frozen=True)
class Symbol:
    """A dynamic symbol: `version` is the library's own name for NVIDIA's, empty for torch's; `kind` is nm's letter."""

    name: str
    version: str
    kind: str


def make_cpu_only(torch: Path) -> None:
    """Replace the GPU part of the package in `torch`; does nothing where there is none (PyTorch's own CPU wheels)."""
    library_folder = torch / "lib"
    dropped = [library_folder / name for name in _GPU_LIBRARIES if (library_folder / name).exists()]
    if dropped:
        _replace_libraries(library_folder, dropped)
        _say_cpu_build(torch)


def _say_cpu_build(torch: Path) -> None:
    """Let Python see what a CPU build says, so that torch registers no GPU variants of its operations."""
    for file, old, new in _CPU_BUILD:
        text = (torch / file).read_text()
        if not re.search(old, text):
            raise ClusterError(f"This torch is not known here: no {old} in {file}; set TORCH_INDEX_URL instead.")
        # A new file: the old one may be shared with uv's cache by a hard link.
        (torch / file).unlink()
        (torch / file).write_text(re.sub(old, new, text))


def _replace_libraries(library_folder: Path, dropped: list[Path]) -> None:
    kept = [path for path in library_folder.glob("*.so*") if path not in dropped]
    # Defined last wins: the first library of the list is the one that the others are linked to.
    provided = {symbol.name: symbol for path in reversed(dropped) for symbol in _symbols(path, "--defined-only")}
    own = {symbol.name for path in kept for symbol in _symbols(path, "--defined-only")}
    wanted = {symbol for path in kept for symbol in _symbols(path, "--undefined-only") if symbol.name not in own}
    stubs = _distribute(wanted, provided)
    for path in dropped:
        path.unlink()
    linked = {name for path in kept for name in _needed(path) if _NVIDIA_LIBRARY.match(name) or name in _GPU_LIBRARIES}
    for name in linked:
        _compile(library_folder / name, sorted(stubs[name], key=lambda symbol: symbol.name))


def _distribute(wanted: set[Symbol], provided: dict[str, Symbol]) -> dict[str, set[Symbol]]:
    """Library name → symbols that it must define. A symbol without a version may come from any library."""
    stubs: dict[str, set[Symbol]] = defaultdict(set)
    for symbol in wanted:
        if symbol.name in provided:
            stubs[_GPU_LIBRARIES[0]].add(provided[symbol.name])
        elif _NVIDIA_LIBRARY.match(symbol.version):
            stubs[symbol.version].add(symbol)
        elif _NVIDIA_FUNCTION.match(symbol.name):
            stubs[_GPU_LIBRARIES[0]].add(symbol)
    return stubs


def stub_source(symbols: list[Symbol]) -> str:
    """C source that defines `symbols`: functions refuse, type information has the right name, other data is zero."""
    return _REFUSAL + "".join(_definition(symbol) for symbol in symbols)


def _definition(symbol: Symbol) -> str:
    name = symbol.name
    if known := _ANSWERS.get(name) or _AT_LOAD.get(name):
        return known + "\n"
    if name.startswith("_ZTI"):
        # C++ compares types by this name when Python bindings are registered.
        return f'const void *{name}[4] = {{_ZTVN10__cxxabiv117__class_type_infoE + 16, "{name[4:]}"}};\n'
    if symbol.kind not in "TWUi":
        return f"char {name}[4096];\n"
    return f'void {name}(void) {{ refuse("{name}"); }}\n'


def _symbols(path: Path, which: str) -> list[Symbol]:
    rows = [line.split()[-2:] for line in _output("nm", "--dynamic", which, path).splitlines()]
    parts = [(kind, *name.partition("@")) for kind, name in rows]
    return [Symbol(name, version.lstrip("@"), kind) for kind, name, _, version in parts]


def _needed(path: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "--dynamic", path))


def _compile(library: Path, symbols: list[Symbol]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, versions = Path(scratch, "stub.c"), Path(scratch, "versions")
        source.write_text(stub_source(symbols))
        flags = [f"-Wl,-soname,{library.name}"]
        if any(symbol.version for symbol in symbols):
            versions.write_text(f"{library.name} {{ global: *; }};\n")
            flags.append(f"-Wl,--version-script={versions}")
        _output("gcc", "-shared", "-fPIC", "-O1", "-s", "-w", "-fno-builtin", "-o", library, source, *flags)


def _output(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(
            f"{command[0]} failed while the GPU part of torch was replaced: {done.stderr.strip()[-500:]}"
        )
    return done.stdout
