"""How far the slowest rank has loaded its weights: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from deepseek_runtime.dist.topology import Topology

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL_SECONDS = 0.2
LINE_SECONDS = 10.0


class Board:
    """Where the ranks of a group write how far they are, 0 to 1, and rank 0 reads it: a connection of its own to the
    store that torchrun keeps, so that reading disturbs nobody."""

    def __init__(self, topology: Topology) -> None:
        self._ranks = topology.world_size
        self._rank = topology.rank
        self._own = 0.0
        self._written = float("-inf")
        self._store = _connect(topology) if self._ranks > 1 else None

    def report(self, share: float) -> None:
        """Tell how far this rank is; what comes too often is dropped, but for the end."""
        self._own = share
        now = time.monotonic()
        if self._store and (share >= 1 or now - self._written >= POLL_SECONDS):
            self._written = now
            self._store.set(f"loaded/{self._rank}", f"{share:.4f}")

    def slowest(self) -> tuple[int, float]:
        """The rank that is least far, and its share."""
        if self._store is None:
            return 0, self._own
        store = self._store
        keys = [f"loaded/{rank}" for rank in range(self._ranks)]
        shares = [float(store.get(key)) if store.check([key]) else 0.0 for key in keys]
        return min(enumerate(shares), key=lambda pair: pair[1])


def _connect(topology: Topology) -> Store:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore

    port = int(os.environ["MASTER_PORT"])
    store = TCPStore(topology.master_addr, port, None, False, timedelta(seconds=60), wait_for_workers=False)
    return PrefixStore("dsv3-generate", store)


class Display:
    """Shows on rank 0, until the end of its `with`, how far the ranks are."""

    def __init__(self, topology: Topology, console: Console) -> None:
        self._topology = topology
        self._console = console
        self._done = threading.Event()
        self._loaded = False
        show = self._show_bar if console.is_terminal else self._show_lines
        self._thread = threading.Thread(target=show, name="loading", daemon=True)

    def __enter__(self) -> Callable[[float], None]:
        """Begin, now that the ranks have met; what is returned takes this rank's share, 0 to 1."""
        self._board = Board(self._topology)
        if self._topology.rank == 0:
            self._thread.start()
        return self._board.report

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loaded = kind is None
        self.close()

    def close(self) -> None:
        """Take the bar away, from any thread: a hidden cursor must not outlive it."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show_bar(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Bar(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("loading weights", total=1.0)
            while not self._done.wait(POLL_SECONDS):
                rank, share = self._board.slowest()
                bar.update(task, completed=share, description=f"loading weights, slowest is rank {rank}")

    def _show_lines(self) -> None:
        started = time.monotonic()
        while not self._done.wait(LINE_SECONDS):
            rank, share = self._board.slowest()
            self._say(f"loading weights: {share:.0%} on rank {rank}, the slowest")
        if self._loaded:
            self._say(f"weights loaded on every rank in {time.monotonic() - started:.1f} s")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)
