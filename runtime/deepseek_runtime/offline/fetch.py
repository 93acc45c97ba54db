"""The folder of a checkpoint that a command line names, fetched from the hub first where it is not here yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from deepseek_runtime.settings import StartupError, checkpoint_folder
from deepseek_runtime.weights.download import LineReport, Order, Receipt
from deepseek_runtime.weights.download import download as run
from deepseek_runtime.weights.hub import Hub


def resolve(model: str, console: Console) -> Path:
    """The checkpoint's folder: the shipped one, one on disk, or one of the hub's, fetched and verified first."""
    folder = checkpoint_folder(model)
    if folder.is_dir():
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise StartupError(f"{model}: neither 'tutor', nor a folder, nor a hub name of the form org/name")
    folder = cache_folder(model)
    download(Order(source=f"hf://{model}", destination=folder), Hub(), console)
    return folder


def cache_folder(name: str) -> Path:
    """Where a hub's checkpoint is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dsv3" / name.replace("/", "--")


def download(order: Order, hub: Hub, console: Console) -> Receipt:
    """Download and verify, with a bar on a terminal and lines elsewhere."""
    if not console.is_terminal:
        return run(order, hub, LineReport())
    with bar(console, order.source) as report:
        return run(order, hub, lambda progress: report(progress.bytes_done, progress.bytes_total))


@contextmanager
def bar(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for bytes on a terminal, nothing elsewhere; what is returned takes bytes done and in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
