"""What the server was told to do: frozen, and passed to whoever needs it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Flags of `python -m deepseek_runtime.serve`; times are in seconds, cache sizes in tokens."""

    model: Path
    served_model_name: tuple[str, ...]
    host: str = "0.0.0.0"
    port: int = 8000
    health_port: int = 8001
    device: str = "auto"
    dtype: str = "auto"
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


class StartupError(RuntimeError):
    """The server cannot start as it was told to; the message says why and what to do."""


def package_version() -> str:
    """Version of the installed distribution, or `0+source` when it runs from a source tree."""
    try:
        return version("deepseek-v3-operator")
    except PackageNotFoundError:
        return "0+source"
