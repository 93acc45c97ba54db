"""Deaths are noticed, goodbyes are not taken for deaths: real processes on loopback, killed and stopped for real."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepseek_runtime.dist.liveness import Callbacks, Limits, Liveness
from deepseek_runtime.dist.topology import Topology

PROGRAM = Path(__file__).with_name("watch_program.py")
Start = Callable[..., "list[Rank]"]


class MemoryStore:
    """Keys that are set before they are asked for."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str, /) -> None:
        self._values[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        return self._values[key]


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
    """Start the numbered ranks of a group of `size`; they are watching when this returns."""
    started: list[Rank] = []

    def start_ranks(*numbers: int, size: int, silence: float = 10, arrival: float = 60) -> list[Rank]:
        ranks = [Rank([str(n), str(size), str(tmp_path), str(silence), str(arrival)]) for n in numbers]
        started.extend(ranks)
        assert [rank.hear() for rank in ranks] == ["watching"] * len(ranks)
        return ranks

    yield start_ranks
    for rank in started:
        rank.end()


def test_a_killed_worker_is_noticed_at_once_by_every_rank(start: Start) -> None:
    first, second, third = start(0, 1, 2, size=3)
    killed_at = time.monotonic()
    third.process.kill()
    for survivor in (first, second):
        assert survivor.hear().startswith("lost 2 its connection ended (closed): the process died")
    assert time.monotonic() - killed_at < 5


def test_the_death_of_rank_0_is_noticed_at_once_by_every_worker(start: Start) -> None:
    first, second, third = start(0, 1, 2, size=3)
    killed_at = time.monotonic()
    first.process.kill()
    for survivor in (second, third):
        assert survivor.hear().startswith("lost 0 its connection ended (")
    assert time.monotonic() - killed_at < 5


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_is_noticed_by_its_silence(start: Start, frozen: int) -> None:
    ranks = start(0, 1, size=2, silence=1)
    frozen_at = time.monotonic()
    ranks[frozen].process.send_signal(signal.SIGSTOP)
    notice = ranks[1 - frozen].hear()
    assert notice.startswith(f"lost {frozen} it was silent for "), notice
    assert time.monotonic() - frozen_at < 5


def test_a_rank_that_lives_but_does_not_enter_the_exchange_is_named_to_every_rank(start: Start) -> None:
    first, second, third = start(0, 1, 2, size=3, silence=1)
    for rank in (first, third):
        rank.tell("enter")
        assert rank.hear() == "inside"
    first.tell("expect 1")
    for rank in (first, second, third):
        assert re.match(r"lost 1 it stalls: rank 1 is before exchange 1 for \d s, which ranks 0, 2 wait", rank.hear())


def test_the_goodbye_of_a_worker_is_not_taken_for_a_death(start: Start) -> None:
    first, second, third = start(0, 1, 2, size=3, silence=2)
    second.tell("bye")
    assert second.hear() == "left"
    first.tell("wait 3")
    assert first.hear() == "quiet"
    third.process.kill()
    assert first.hear().startswith("lost 2 "), "the others are still watched"


def test_the_goodbye_of_rank_0_is_told_and_not_taken_for_a_death(start: Start) -> None:
    first, second = start(0, 1, size=2, silence=2)
    first.tell("bye")
    assert second.hear() == "rank 0 left"
    assert first.hear() == "left"
    second.tell("wait 3")
    assert second.hear() == "quiet"
    second.tell("bye")
    assert second.hear() == "left"


@pytest.mark.parametrize("failing", [0, 1])
def test_why_a_rank_ends_is_told_to_every_other_one_and_not_taken_for_a_death(start: Start, failing: int) -> None:
    ranks = start(0, 1, 2, size=3)
    ranks[failing].tell("fail shard_3.safetensors: missing")
    for rank in ranks[:failing] + ranks[failing + 1 :]:
        assert rank.hear() == f"failed ({failing}, 2, 'shard_3.safetensors: missing')"
    assert ranks[failing].hear() == "left"


def test_a_rank_that_leaves_still_hears_why_another_one_failed_before(start: Start) -> None:
    first, second = start(0, 1, size=2)
    first.process.send_signal(signal.SIGSTOP)
    second.tell("fail no memory")
    assert second.hear() == "left"
    first.tell("bye")
    first.process.send_signal(signal.SIGCONT)
    assert {first.hear(), first.hear()} == {"failed (1, 2, 'no memory')", "left"}


def test_a_rank_that_freezes_before_anything_is_exchanged_is_named_within_the_limit(start: Start) -> None:
    first, second, _ = start(0, 1, 2, size=3, silence=10)
    second.process.send_signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    first.tell("expect 1")
    assert first.hear().startswith("lost 1 it stalls: ranks 0, 1, 2 are before exchange 1 for ")
    assert time.monotonic() - frozen_at < 9, "before its silence alone would tell"


def close_in_turn(watches: list[Liveness]) -> None:
    for watch in watches:
        watch.close()


def close_together(watches: list[Liveness]) -> None:
    with ThreadPoolExecutor(len(watches)) as pool:
        list(pool.map(Liveness.close, watches))


@pytest.mark.parametrize("close", [close_in_turn, close_together])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))) * 10)
def test_partings_right_after_the_start_are_no_deaths(
    order: tuple[int, ...], close: Callable[[list[Liveness]], None]
) -> None:
    store, lost, chatty = MemoryStore(), [], Limits(interval=0.001)
    callbacks = Callbacks(lambda *loss: lost.append(loss))
    watches = [Liveness(Topology(n, 3, n, 3), store, callbacks, chatty) for n in range(3)]
    for watch in watches:
        watch.start()
    close([watches[rank] for rank in order])
    assert lost == []


def test_a_rank_that_never_connects_is_lost(start: Start) -> None:
    (first,) = start(0, size=2, arrival=0.5)
    assert first.hear() == "lost 1 it did not connect within 0.5 s"


@pytest.mark.parametrize("before_the_rank", [True, False])
def test_strangers_at_the_port_are_no_ranks(start: Start, tmp_path: Path, before_the_rank: bool) -> None:
    ranks = start(*([0] if before_the_rank else [0, 1]), size=2)
    host, port, token = (tmp_path / "liveness").read_text().split()
    hellos = [b"GET / HTTP/1.1\r\n\r\n", b"hello\twrong\t1\n", f"hello\t{token}\t2\n".encode(), b"x" * 9000]
    if not before_the_rank:
        hellos.append(f"hello\t{token}\t1\n".encode())
    for hello in hellos:
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(hello)
    ranks[0].tell("wait 0.5")
    assert ranks[0].hear() == "quiet"
    rank_1 = start(1, size=2)[0] if before_the_rank else ranks[1]
    rank_1.tell("wait 0.5")
    assert rank_1.hear() == "quiet", "the true rank was admitted"
    rank_1.process.kill()
    assert ranks[0].hear().startswith("lost 1 ")


def test_a_watch_that_ended_by_a_death_can_still_be_closed(start: Start) -> None:
    first, second = start(0, 1, size=2)
    second.process.kill()
    assert first.hear().startswith("lost 1 ")
    first.tell("bye")
    assert first.hear() == "left"
