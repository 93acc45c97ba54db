"""pip, CMake and Ninja in an environment of their own, so that a C++ compiler is all that the machine must have."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.yardstick.console import logged, step
from benchmarks.yardstick.errors import BenchmarkError
from benchmarks.yardstick.places import cache_folder, making

_PACKAGES = ("uv==0.13.8", "cmake==4.4.4", "ninja==1.13.2")


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs of the environment in `folder`."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / "bin" / name


def tools() -> Tools:
    """The environment, made on first use."""
    folder = cache_folder() / "tools"
    with making(folder, " ".join(_PACKAGES)) as missing:
        if missing:
            with step("Installing uv, CMake and Ninja for the peers"):
                log = folder.with_suffix(".log")
                logged([sys.executable, "-m", "venv", "--clear", folder], log)
                logged([folder / "bin/pip", "install", "--disable-pip-version-check", *_PACKAGES], log)
    return Tools(folder)


def require_compiler() -> None:
    """Raise where there is no C++ compiler."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise BenchmarkError("llama.cpp is compiled here and there is no C++ compiler: apt-get install g++")
