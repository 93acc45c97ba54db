"""A rank that stops in the middle of a stream without dying: its connections stay open, and only its silence shows."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from deepseek_runtime.dist.liveness import Limits
from fake_model import write_tokenizer
from tiny_checkpoint import v3_config, write_checkpoint

from .test_serve import MODULE, Ranks, free_port, launched, long_stream

NOTICED_WITHIN = Limits().silence + Limits().interval
"""Seconds from the freeze to the word of it; signs of life come in intervals."""
SLACK = 5
"""Seconds that a busy machine may add."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tokenizer(tmp_path_factory.mktemp("frozen"))
    write_checkpoint(folder, v3_config(vocab_size=272, max_position_embeddings=4096))
    return folder


@contextmanager
def two_ranks(folder: Path) -> Iterator[Ranks]:
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environments = [{**shared, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    with launched([(MODULE, environment) for environment in environments], folder) as ranks:
        try:
            ranks.wait_ready()
            yield ranks
        finally:
            for process in ranks.processes:  # A frozen one ends no other way.
                process.kill()


def error_of(line: str) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(line.removeprefix("data: "))["error"]
    return error


def test_a_rank_that_freezes_ends_streams_and_group_with_its_number(folder: Path) -> None:
    sentence = "rank 1 is lost: it was silent for"
    with two_ranks(folder) as ranks:
        with long_stream(ranks, max_tokens=4000) as lines:
            ranks.processes[1].send_signal(signal.SIGSTOP)
            frozen_at = monotonic()
            error = error_of(list(lines)[-1])
        assert monotonic() - frozen_at < NOTICED_WITHIN + SLACK
        assert error["code"] == "group_broken"
        assert sentence in error["message"]
        assert ranks.processes[0].wait(SLACK) == 1
        assert sentence in ranks.output()


def test_a_rank_that_is_killed_in_a_stream_is_named_to_its_client(folder: Path) -> None:
    with two_ranks(folder) as ranks:
        with long_stream(ranks, max_tokens=4000) as lines:
            ranks.processes[1].kill()
            killed_at = monotonic()
            error = error_of(list(lines)[-1])
        assert monotonic() - killed_at < SLACK
        assert error["code"] == "group_broken"
        assert "rank 1 is lost: its connection ended" in error["message"]
        assert ranks.processes[0].wait(SLACK) == 1
