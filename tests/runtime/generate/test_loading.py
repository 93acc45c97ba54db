"""While weights load, the slowest rank is shown: as a bar on a terminal, as lines elsewhere."""

import io
from datetime import timedelta

import pytest
from rich.console import Console
from torch.distributed import TCPStore

from deepseek_runtime.dist.topology import Topology
from deepseek_runtime.offline.loading import Board, Display


def test_the_slowest_rank_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    boards = [Board(Topology(rank=rank, world_size=3, local_world_size=3)) for rank in range(3)]
    for board, share in zip(boards[:2], (0.9, 0.3), strict=True):
        board.report(share)
    assert boards[0].slowest() == (2, 0.0)
    boards[2].report(1.0)
    assert boards[0].slowest() == (1, 0.3)
    boards[1].report(1.0)
    assert boards[0].slowest() == (0, 0.9)


@pytest.mark.parametrize("terminal", [True, False])
def test_loading_is_shown_and_ends(terminal: bool) -> None:
    shown = io.StringIO()
    with Display(Topology(), Console(file=shown, force_terminal=terminal, width=100)) as report:
        report(0.5)
        report(1.0)
    assert ("loading weights" in shown.getvalue()) is terminal
    assert ("weights loaded on every rank in" in shown.getvalue()) is not terminal


def test_loading_that_failed_is_not_called_loaded() -> None:
    shown = io.StringIO()

    def load() -> None:
        with Display(Topology(), Console(file=shown, force_terminal=False)):
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        load()
    assert shown.getvalue() == ""
