"""What this rank's device is and how much of its memory is free, as drivers and kernel tell it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from deepseek_runtime.dist.topology import Topology
from deepseek_runtime.weights.residency import Hardware

CGROUP = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")
UNKNOWN = 2**62
"""Where nobody says how much memory is free, nothing is refused for the lack of it."""


def hardware_of(device: torch.device) -> Hardware:
    """The device as far as FP8 is concerned."""
    if device.type != "cuda":
        return Hardware(f"this {device.type.upper()}")
    if torch.version.hip:
        return Hardware.amd(torch.cuda.get_device_properties(device).gcnArchName)
    return Hardware.nvidia(torch.cuda.get_device_capability(device))


def free_memory(device: torch.device) -> int:
    """Bytes that this rank may still take: of its GPU, or its share of what machine and container leave to a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    bounds = (available_bytes(MEMORY), container_bytes(CGROUP))
    known = [bound for bound in bounds if bound is not None]
    return min(known, default=UNKNOWN) // Topology.from_env(os.environ).local_world_size


def available_bytes(file: Path) -> int | None:
    """What the kernel thinks can be had without swapping; None where it does not say."""
    lines = file.read_text().splitlines() if file.exists() else []
    found = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return int(found[1]) * 1024 if found else None


def container_bytes(folder: Path) -> int | None:
    """What a container's limit leaves, its page cache counted as free (cgroup v2); None where there is no limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    files = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
    return max(int(limit) - used + files, 0)
