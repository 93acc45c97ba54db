"""`dsv3 bench`: what it measures adds up, it is bounded, and an overloaded endpoint does not end it."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deepseek_runtime.client.figures import summarise
from deepseek_runtime.client.load import Answer, Level

Command = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("--requests", "6", "--prompt-tokens", "60", "--output-tokens", "8")


def test_levels_are_measured_and_drawn(dsv3: Command, tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    result = dsv3("bench", *SMALL, "--concurrency", "1,3", "--json", "--plot", str(chart))
    assert result.returncode == 0, result.stderr
    levels = json.loads(result.stdout)["levels"]
    assert [level["concurrency"] for level in levels] == [1, 3]
    for level in levels:
        assert (level["answers"], level["failed"], level["output_tokens"]) == (6, 0, 8)
        assert 50 <= level["prompt_tokens"] <= 70
        assert level["output_tokens_per_second"] * level["seconds"] == pytest.approx(48)
        assert 0 < level["ttft_ms"]["p50"] <= level["e2e_ms"]["p50"] <= level["e2e_ms"]["p99"]
        assert level["itl_ms"]["p50"] > 0
    assert ElementTree.fromstring(chart.read_text()).tag.endswith("svg")


def test_the_table_is_for_people(dsv3: Command) -> None:
    result = dsv3("bench", *SMALL, "--concurrency", "2")
    assert "tokens/s out" in result.stdout
    assert result.returncode == 0


def test_requests_that_the_server_refuses_are_counted(dsv3: Command) -> None:
    result = dsv3("bench", *SMALL, "--requests", "64", "--output-tokens", "64", "--concurrency", "64", "--json")
    (level,) = json.loads(result.stdout)["levels"]
    assert level["answers"] + level["failed"] == 64
    assert level["answers"] >= 16
    assert sum(level["errors"].values()) == level["failed"]


def test_no_request_begins_after_the_time_is_over(dsv3: Command) -> None:
    options = ("--requests", "100000", "--seconds", "0.5", "--output-tokens", "2", "--concurrency", "2", "--json")
    (level,) = json.loads(dsv3("bench", *options).stdout)["levels"]
    assert 0 < level["answers"] < 100000


@pytest.mark.parametrize("text", ["0", "a", "1,,2", "100000", "-1"])
def test_a_wrong_number_of_clients_is_refused(dsv3: Command, text: str) -> None:
    result = dsv3("bench", f"--concurrency={text}")
    assert result.returncode == 2
    assert "1 to 4096" in result.stderr


def test_an_unknown_model_is_refused_in_the_servers_words(dsv3: Command) -> None:
    result = dsv3("bench", "--model", "other")
    assert result.returncode == 2
    assert "404" in result.stderr
    assert "Traceback" not in result.stderr


def test_figures_follow_from_the_times() -> None:
    answers = [
        Answer(sent=0.0, pieces=[0.1, 0.3, 0.5], ended=0.6, prompt_tokens=10, output_tokens=3),
        Answer(sent=0.0, pieces=[0.2, 0.6], ended=0.7, prompt_tokens=30, output_tokens=5),
        Answer(sent=0.0, ended=0.1, error="429"),
    ]
    summary = summarise(Level(2, 2.0, answers))
    assert (summary.answers, summary.failed, dict(summary.errors)) == (2, 1, {"429": 1})
    assert summary.output_tokens_per_second == 4.0
    assert summary.total_tokens_per_second == 24.0
    assert summary.ttft_ms["p50"] == pytest.approx(150)
    assert math.isclose(summary.itl_ms["p99"], 200, rel_tol=0.01)
    assert summary.e2e_ms["p50"] == pytest.approx(650)


def test_a_level_without_any_answer_has_no_latencies() -> None:
    summary = summarise(Level(1, 1.0, [Answer(sent=0.0, ended=0.1, error="gone")]))
    assert summary.ttft_ms == {}
    assert summary.output_tokens_per_second == 0
