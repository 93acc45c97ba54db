"""Finds or makes the shared library, and declares its functions.

First a library built beforehand, then one in the user's cache, then a compiler; a machine with none of them, or a CPU
without the instructions, does without.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

from deepseek_runtime.kernels.cpu.build import FEATURES, PREBUILT, BuildError, build, find_compiler, fingerprint

logger = logging.getLogger(__name__)

POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float

FUNCTIONS = {
    "dsv3_linear": (POINTER, POINTER, INT, LONG, LONG, POINTER, INT),
    "dsv3_swiglu": (POINTER, POINTER, INT, LONG, LONG, POINTER, INT),
    "dsv3_experts": (POINTER, POINTER, INT, LONG, LONG, POINTER, POINTER, LONG, LONG, POINTER, INT),
    "dsv3_route": (POINTER, POINTER, POINTER, INT, LONG, LONG, POINTER, POINTER, POINTER, INT),
    "dsv3_rms_norm": (POINTER, POINTER, POINTER, POINTER, POINTER, FLOAT, LONG, LONG, LONG, INT, INT),
    "dsv3_rotate": (POINTER, POINTER, POINTER, LONG, LONG, LONG, LONG, LONG, INT, INT),
    "dsv3_write_latents": (
        *(POINTER, POINTER, POINTER, POINTER, FLOAT, POINTER),
        *(LONG, LONG, LONG, LONG, INT, INT),
    ),
    "dsv3_absorbed_attention": (POINTER, POINTER, POINTER, POINTER, POINTER, INT, INT),
    "dsv3_expanded_attention": (POINTER, POINTER, POINTER, POINTER, LONG, LONG, POINTER, INT, INT),
}
"""Argument types, as the sources say."""


@cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where this machine cannot have it; the log says in one sentence which and why."""
    missing = [feature for feature in FEATURES if feature not in cpu_features()]
    if missing:
        logger.info("kernels: plain torch, this CPU has no %s", ", ".join(missing))
        return None
    try:
        path = _find_or_build()
    except BuildError as error:
        logger.warning("kernels: plain torch, which is several times slower: %s", error)
        return None
    logger.info("kernels: AVX-512, %s", path)
    return open_library(path)


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library and declare its functions."""
    _show_openmp()
    library = ctypes.CDLL(str(path))
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = arguments
    return library


def cpu_features() -> frozenset[str]:
    """Instruction sets of this machine; none where /proc/cpuinfo does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def cache_folder() -> Path:
    """Where built libraries are kept for the next start."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dsv3" / "kernels"


def _find_or_build() -> Path:
    if PREBUILT.exists():
        return PREBUILT
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(f"there is no C++ compiler on PATH, and {PREBUILT} was not built beforehand")
    path = cache_folder() / f"{fingerprint(compiler)}.so"
    if not path.exists():
        with _alone(path):
            if not path.exists():
                logger.info("kernels: compiling with %s to %s", compiler, path)
                build(compiler, path)
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one rank compile and the others wait; where no lock can be had, each compiles for itself."""
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _show_openmp() -> None:
    """Make the OpenMP runtime that torch brings visible to the library, whose loops run on torch's own team."""
    for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
