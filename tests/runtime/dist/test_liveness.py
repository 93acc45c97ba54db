"""Deaths are noticed, goodbyes are not taken for deaths: real processes on loopback, killed and stopped for real."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("watch_program.py")
Start = Callable[..., "list[Rank]"]


class Rank:
    """A running watch_program."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def hear(self) -> str:
        """The next line it prints."""
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `size` ranks, or only some of them; all that start are watching."""
    started: list[Rank] = []

    def start_ranks(size: int, *, only: int | None = None, silence: float = 10, arrival: float = 60) -> list[Rank]:
        ranks = [Rank([str(n), str(size), str(tmp_path), str(silence), str(arrival)]) for n in range(only or size)]
        started.extend(ranks)
        assert [rank.hear() for rank in ranks] == ["watching"] * len(ranks)
        return ranks

    yield start_ranks
    for rank in started:
        rank.end()


def test_a_killed_worker_is_noticed_at_once_by_every_rank(start: Start) -> None:
    first, second, third = start(3)
    killed_at = time.monotonic()
    third.process.kill()
    for survivor in (first, second):
        assert survivor.hear().startswith("lost 2 its connection ended (closed): the process died")
    assert time.monotonic() - killed_at < 5


def test_the_death_of_rank_0_is_noticed_at_once_by_every_worker(start: Start) -> None:
    first, second, third = start(3)
    killed_at = time.monotonic()
    first.process.kill()
    for survivor in (second, third):
        assert survivor.hear().startswith("lost 0 its connection ended (")
    assert time.monotonic() - killed_at < 5


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_is_noticed_by_its_silence(start: Start, frozen: int) -> None:
    ranks = start(2, silence=1)
    frozen_at = time.monotonic()
    ranks[frozen].process.send_signal(signal.SIGSTOP)
    notice = ranks[1 - frozen].hear()
    assert notice.startswith(f"lost {frozen} it was silent for 1."), notice
    assert time.monotonic() - frozen_at < 5


def test_the_goodbye_of_a_worker_is_not_taken_for_a_death(start: Start) -> None:
    first, second, third = start(3, silence=1)
    second.tell("bye")
    assert second.hear() == "left"
    first.tell("wait 2")
    assert first.hear() == "quiet"
    third.process.kill()
    assert first.hear().startswith("lost 2 "), "the others are still watched"


def test_the_goodbye_of_rank_0_is_not_taken_for_a_death(start: Start) -> None:
    first, second = start(2, silence=1)
    first.tell("bye")
    assert first.hear() == "left"
    second.tell("wait 2")
    assert second.hear() == "quiet"
    second.tell("bye")
    assert second.hear() == "left"


def test_a_rank_that_never_connects_is_lost(start: Start) -> None:
    (first,) = start(2, only=1, arrival=0.5)
    assert first.hear() == "lost 1 it did not connect within 0.5 s"


def test_strangers_at_the_port_are_no_ranks(start: Start, tmp_path: Path) -> None:
    first, second = start(2, silence=1)
    host, port, token = (tmp_path / "liveness").read_text().split()
    for hello in (b"GET / HTTP/1.1\r\n\r\n", b"hello\twrong\t1\n", f"hello\t{token}\t1\n".encode(), b"x" * 9000):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(hello)
    first.tell("wait 2")
    assert first.hear() == "quiet"
    second.process.kill()
    assert first.hear().startswith("lost 1 ")


def test_a_watch_that_ended_by_a_death_can_still_be_closed(start: Start) -> None:
    first, second = start(2)
    second.process.kill()
    assert first.hear().startswith("lost 1 ")
    first.tell("bye")
    assert first.hear() == "left"
