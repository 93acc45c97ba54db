"""Triton's language with the types that this package's type checker needs; Triton itself carries none.

Set TRITON_INTERPRET=1 before this package is imported to run every kernel on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]

__all__ = ["INTERPRETED", "Kernel", "cdiv", "inline", "kernel", "next_power", "tl"]

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels are interpreted on the CPU. There `tl.dot` is right in float32 only."""


class Kernel(Protocol):
    """A compiled-on-demand kernel: `kernel[grid](arguments)` launches it."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]: ...


def kernel(*varying: str) -> Callable[[Callable[..., None]], Kernel]:
    """Make a kernel. Arguments named `varying` change from step to step, so that no variant is compiled for a value."""

    def decorate(function: Callable[..., None]) -> Kernel:
        compiled: Kernel = triton.jit(function, do_not_specialize=varying)
        return compiled

    return decorate


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call."""
    compiled: Callable[..., Any] = triton.jit(function)
    return compiled


def cdiv(total: int, part: int) -> int:
    """How many parts cover the total."""
    return -(-total // part)


def next_power(size: int, least: int = 16) -> int:
    """The smallest power of two that is at least `size` and `least`: the shapes that blocks may have."""
    return max(least, 1 << (size - 1).bit_length())
