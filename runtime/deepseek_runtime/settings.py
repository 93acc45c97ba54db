"""What the server was told to do: frozen, and passed to whoever needs it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Literal

MAX_SPECULATIVE_TOKENS = 3

LEAST_STALL_TIMEOUT = 2.0
"""Seconds; below it a group that is merely idle or busy could not be told from one that stalls."""

OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""Threads spin for microseconds at a barrier, then sleep: to sleep at once costs a step of a hundred barriers a third
of its time, and threads that spin for long starve the other ranks."""


def share_processors(processes: int) -> None:
    """Let this machine's `processes` share its cores. Must come before torch is imported; set variables stay."""
    share = max(len(os.sched_getaffinity(0)) // processes, 1)
    for name, value in {"OMP_NUM_THREADS": str(share), **OPENMP}.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Flags of `python -m deepseek_runtime.serve`; times are in seconds, cache sizes in tokens.

    `speculative_tokens` None means 1 where the checkpoint has an MTP layer, else 0. With `attention` "data" each rank
    has a cache of its own, and `kv_tokens` is the size of each. `config` is read in place of the checkpoint's
    `config.json`; no flag of the server sets it.
    """

    model: Path
    config: Path | None = None
    served_model_name: tuple[str, ...]
    host: str = "0.0.0.0"
    port: int = 8000
    health_port: int = 8001
    device: str = "auto"
    dtype: str = "auto"
    weights: Literal["auto", "fp8", "compute"] = "auto"
    attention: Literal["tensor", "data"] = "tensor"
    redundant_experts: int = 0
    batch_invariant: bool = False
    speculative_tokens: int | None = None
    prefix_caching: bool = True
    graphs: bool = True
    max_model_len: int | None = None
    kv_tokens: int | None = None
    block_size: int = 64
    max_batch_tokens: int | None = None
    max_running: int = 64
    max_queued: int = 256
    request_timeout: float = 600.0
    drain_timeout: float = 120.0
    stall_timeout: float = 60.0
    api_key_folder: Path | None = None
    protect_metrics: bool = False
    protect_probes: bool = False
    chat_page: bool = True
    access_log: bool = True
    max_body_mib: int = 32
    max_requests: int = 1024
    max_connections: int = 4096
    body_timeout: float = 60.0

    @property
    def keep_alive(self) -> float:
        """Seconds between two signs of life of an idle group; several of them come within `stall_timeout`."""
        return min(5.0, self.stall_timeout / 4)

    def problem(self) -> str | None:
        """The first value that cannot be served with, as a sentence."""
        return next(chain(self._out_of_range(), self._conflicts()), None)

    def _out_of_range(self) -> Iterator[str]:
        sizes = ("max_model_len", "kv_tokens", "block_size", "max_batch_tokens", "max_running", "max_body_mib")
        counts = ("max_requests", "max_connections")
        for name in (*sizes, *counts, "body_timeout", "request_timeout", "drain_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                yield f"{_flag(name)} must be more than 0 and finite, not {value}"
        if not LEAST_STALL_TIMEOUT <= self.stall_timeout < math.inf:
            bounds = f"at least {LEAST_STALL_TIMEOUT:g} seconds and finite"
            yield f"--stall-timeout must be {bounds}, not {self.stall_timeout:g}"
        for name in ("port", "health_port"):
            if not 0 <= getattr(self, name) <= 65535:
                yield f"{_flag(name)} must be 0 to 65535, not {getattr(self, name)}"
        for name in ("max_queued", "redundant_experts"):
            if getattr(self, name) < 0:
                yield f"{_flag(name)} must not be negative, not {getattr(self, name)}"
        if not 0 <= (self.speculative_tokens or 0) <= MAX_SPECULATIVE_TOKENS:
            yield f"--speculative-tokens must be 0 to {MAX_SPECULATIVE_TOKENS}, not {self.speculative_tokens}"

    def _conflicts(self) -> Iterator[str]:
        if self.batch_invariant and self.redundant_experts:
            yield (
                f"--redundant-experts {self.redundant_experts} cannot be used with --batch-invariant: which copy of an "
                "expert a token visits depends on the other tokens; leave out one of the two"
            )
        if self.api_key_folder and not self.api_key_folder.is_dir():
            yield f"--api-key-folder {self.api_key_folder}: no such folder"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class StartupError(RuntimeError):
    """The server cannot start as it was told to; the message says why and what to do."""


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint: a path, or `tutor` for the one that ships with this package."""
    return Path(__file__).parent / "tutor" if name == "tutor" else Path(name)


def package_version() -> str:
    """Version of the installed distribution, or `0+source` when it runs from a source tree."""
    try:
        return version("deepseek-v3-operator")
    except PackageNotFoundError:
        return "0+source"
