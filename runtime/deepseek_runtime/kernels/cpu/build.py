"""Compiles the C++ sources to one shared library. It links to nothing: not to torch, not to an OpenMP runtime.

    python -m deepseek_runtime.kernels.cpu.build [--output FILE]

puts it beside the sources (or where told), so that an image needs no compiler; without it the first start compiles.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
PREBUILT = Path(__file__).parent / "dsv3_kernels.so"

FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512vbmi", "fma", "bmi2")
"""What the instructions need, as /proc/cpuinfo names it."""

COMPILERS = ("g++", "clang++", "c++")

# The instructions are named one by one: what -march=native picks would not run on the next machine.
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-fno-exceptions", "-fvisibility=hidden"),
    *(f"-m{feature.replace('_', '')}" for feature in FEATURES),
    # GCC 12 takes its own intrinsics for uninitialised variables.
    *("-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)

TIMEOUT = 300


class BuildError(RuntimeError):
    """No library: no compiler, or one that fails."""


def find_compiler() -> str | None:
    """The first C++ compiler on PATH."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def fingerprint(compiler: str) -> str:
    """Sixteen hex digits over sources, flags and compiler: what a cached library was made of."""
    digest = hashlib.sha256("\0".join(FLAGS).encode())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=TIMEOUT)
    digest.update(version.stdout)
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def build(compiler: str, output: Path, sources: Path = SOURCES) -> None:
    """Compile a folder to `output`, which appears whole or not at all: several ranks may build it at once."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(suffix=".so", dir=output.parent)
    except OSError as error:
        raise BuildError(f"{output.parent} cannot be written: {error.strerror}") from error
    os.close(descriptor)
    try:
        _compile(compiler, sources, Path(unfinished))
        os.chmod(unfinished, 0o755)
        os.replace(unfinished, output)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _compile(compiler: str, sources: Path, output: Path) -> None:
    command = [compiler, *FLAGS, "-o", str(output), *map(str, sorted(sources.glob("*.cpp")))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} did not run: {error}") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise BuildError(f"{compiler} failed: {first}")


def main() -> None:
    """Build where the command line says; exit 1 with a sentence if it cannot."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_runtime.kernels.cpu.build", description=__doc__)
    parser.add_argument("--output", type=Path, default=PREBUILT, help="default: %(default)s")
    output = parser.parse_args().output
    compiler = find_compiler()
    try:
        if compiler is None:
            raise BuildError(f"no C++ compiler on PATH (looked for {', '.join(COMPILERS)})")
        build(compiler, output)
    except BuildError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{output}\n")


if __name__ == "__main__":
    main()
