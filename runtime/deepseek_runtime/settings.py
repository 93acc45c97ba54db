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

    def problem(self) -> str | None:
        """The first value that cannot be served with, as a sentence."""
        positive = ("max_model_len", "kv_tokens", "block_size", "max_batch_tokens", "max_running")
        for name in (*positive, "request_timeout", "drain_timeout", "stall_timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                return f"--{name.replace('_', '-')} must be more than 0, not {value}"
        for name in ("port", "health_port"):
            if not 0 <= getattr(self, name) <= 65535:
                return f"--{name.replace('_', '-')} must be 0 to 65535, not {getattr(self, name)}"
        if self.max_queued < 0:
            return f"--max-queued must not be negative, not {self.max_queued}"
        if self.api_key_folder and not self.api_key_folder.is_dir():
            return f"--api-key-folder {self.api_key_folder}: no such folder"
        return None


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
