"""How far a device has got with what it was given: a mark is an event in its queue, asked from any thread."""

from __future__ import annotations

from collections.abc import Callable

import torch

from deepseek_runtime.dist.progress import Passed


def marker(device: torch.device) -> Callable[[], Passed] | None:
    """A function that leaves a mark behind all work of the current stream; None for a CPU, which does work at once.

    An event must not be asked while any thread captures a graph: begin to leave marks when all are captured.
    """
    return None if device.type == "cpu" else _mark


def _mark() -> Passed:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.query
