"""An idle group is never taken for one that stalls, however short the limit is."""

import threading
from pathlib import Path
from time import monotonic

import pytest

from deepseek_runtime.settings import Settings
from fake_model import write_tokenizer
from serving import served
from tiny_checkpoint import v3_config, write_checkpoint

SHORT = 3.0
"""Seconds: less than an idle group is silent by default, more than a busy machine holds up a process."""


def settings(stall_timeout: float) -> Settings:
    return Settings(model=Path("checkpoint"), served_model_name=("tiny",), stall_timeout=stall_timeout)


@pytest.mark.parametrize(("limit", "seconds"), [(2, 0.5), (4, 1), (20, 5), (60, 5), (3600, 5)])
def test_several_signs_of_life_come_within_the_limit(limit: float, seconds: float) -> None:
    assert settings(limit).problem() is None
    assert settings(limit).keep_alive == seconds


@pytest.mark.parametrize("limit", [-1, 0, 1.9, float("nan"), float("inf")])
def test_a_limit_that_no_idle_group_could_keep_is_refused_in_a_sentence(limit: float) -> None:
    assert settings(limit).problem() == f"--stall-timeout must be at least 2 seconds and finite, not {limit:g}"


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_idle_group_stays_ready_at_a_short_limit(tmp_path: Path, ranks: int) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint")
    write_checkpoint(folder, v3_config(vocab_size=272, max_position_embeddings=4096))
    pause = threading.Event()
    with served(folder, "--stall-timeout", str(SHORT), ranks=ranks) as client:
        end = monotonic() + 3 * SHORT
        while monotonic() < end:
            answer = client.get("/readyz")
            assert answer.status_code == 200, answer.text
            pause.wait(0.1)
        assert client.post("/v1/completions", json={"model": "test", "prompt": "a", "max_tokens": 2}).status_code == 200
