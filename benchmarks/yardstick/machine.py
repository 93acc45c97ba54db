"""The machine and the versions that figures belong to."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.yardstick.peers import llama_build, vllm_install

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """Processor, cores that may be used, memory, and how busy the machine is: other work falsifies every figure."""
    info = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )  # the last core's
    fields = {name.strip(): value.strip() for name, value in info.items()}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "features": [feature for feature in _FEATURES if feature in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """What was compared with what."""
    peers = {"llama.cpp": f"of llama-cpp-python {llama_build.VERSION}", "vllm": vllm_install.PACKAGE}
    return {**{name: _version(name) for name in ("torch", "transformers")}, **peers}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
