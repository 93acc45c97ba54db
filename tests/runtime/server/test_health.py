"""The probes' port of every pod: up at once, honest about each phase."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deepseek_runtime.health import Health, HealthServer, Phase, Suspect


@pytest.fixture
def health() -> Health:
    return Health(rank=3, world_size=16, stall_seconds=10, dead_seconds=100)


@pytest.fixture
def probe(health: Health) -> Iterator[httpx.Client]:
    server = HealthServer(health, "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        yield client
    server.close()


@pytest.mark.parametrize(
    ("phase", "live", "started", "ready"),
    [
        (Phase.STARTING, 200, 503, 503),
        (Phase.JOINING, 200, 503, 503),
        (Phase.LOADING, 200, 503, 503),
        (Phase.WARMING_UP, 200, 503, 503),
        (Phase.READY, 200, 200, 200),
        (Phase.DRAINING, 200, 200, 503),
        (Phase.BROKEN, 503, 503, 503),
    ],
)
def test_each_phase_has_its_answers(
    health: Health, probe: httpx.Client, phase: Phase, live: int, started: int, ready: int
) -> None:
    health.enter(phase)
    answers = [probe.get(path) for path in ("/livez", "/startupz", "/readyz")]
    assert [answer.status_code for answer in answers] == [live, started, ready]
    assert all(answer.json()["phase"] == phase for answer in answers)


def test_a_body_tells_rank_progress_and_age(health: Health, probe: httpx.Client) -> None:
    health.enter(Phase.LOADING, "shard 3 of 9")
    health.report(0.123456)
    health.watch(lambda: 1.5)
    assert probe.get("/readyz").json() == {
        "phase": "loading",
        "status": "loading 12 %",
        "progress": 0.1235,
        "rank": 3,
        "ranks": 16,
        "last_step_age_seconds": 1.5,
        "message": "shard 3 of 9",
    }


def test_a_stalled_rank_is_not_ready_and_later_not_alive(health: Health, probe: httpx.Client) -> None:
    health.enter(Phase.READY)
    for age, live, ready in [(9.0, 200, 200), (11.0, 200, 503), (101.0, 503, 503)]:
        health.watch(lambda age=age: age)  # type: ignore[misc]
        assert (probe.get("/livez").status_code, probe.get("/readyz").status_code) == (live, ready)


def test_a_rank_that_holds_up_the_others_is_named_before_the_group_ends(health: Health, probe: httpx.Client) -> None:
    health.enter(Phase.READY)
    sentence = "rank 7 is before exchange 12 for 31 s, which ranks 0, 1 wait for"
    health.watch_ranks(lambda: Suspect(7, 31.25, sentence), lambda: {0: 31.5, 7: 31.25})
    answer = probe.get("/readyz")
    assert answer.status_code == 503
    expected = {"phase": "stalled", "status": "stalled rank 7", "stalled_rank": 7, "stalled_seconds": 31.25}
    assert answer.json().items() >= (expected | {"message": sentence}).items()
    assert probe.get("/livez").status_code == 200
    health.watch_ranks(lambda: Suspect(7, 100.5, sentence), dict)
    assert probe.get("/livez").status_code == 503


@pytest.mark.parametrize(
    ("phase", "progress", "status"),
    [
        (Phase.LOADING, 0.634, "loading 63 %"),
        (Phase.WARMING_UP, 1, "warming_up"),
        (Phase.READY, 1, "ready"),
        (Phase.DRAINING, 1, "draining"),
    ],
)
def test_the_state_is_told_in_a_few_words(health: Health, phase: Phase, progress: float, status: str) -> None:
    health.enter(phase)
    health.report(progress)
    assert health.status == status


def test_a_draining_group_is_not_called_stalled(health: Health, probe: httpx.Client) -> None:
    health.enter(Phase.DRAINING)
    health.watch(lambda: 11.0)
    assert probe.get("/readyz").json()["status"] == "draining"


def test_what_is_broken_stays_broken(health: Health) -> None:
    health.enter(Phase.BROKEN, "rank 1 is lost")
    health.enter(Phase.DRAINING)
    assert (health.phase, health.message) == (Phase.BROKEN, "rank 1 is lost")


def test_the_api_port_has_the_probes_too(make_server: Callable[..., Any]) -> None:
    server = make_server()
    server.health.enter(Phase.LOADING)
    server.health.report(0.25)
    answers = [server.client.get(path) for path in ("/livez", "/health", "/startupz", "/readyz")]
    assert [answer.status_code for answer in answers] == [200, 200, 503, 503]
    assert {answer.json()["status"] for answer in answers} == {"loading 25 %"}
    server.open()
    assert [server.client.get(path).status_code for path in ("/startupz", "/readyz")] == [200, 200]


def test_other_paths_name_the_probes(probe: httpx.Client) -> None:
    response = probe.get("/")
    assert response.status_code == 404
    assert "/startupz" in response.json()["error"]


def test_probes_and_http_are_up_before_torch_is_imported() -> None:
    program = (
        "import json, sys, deepseek_runtime.serve, deepseek_runtime.server.app, deepseek_runtime.server.listen;"
        "print(json.dumps('torch' in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) is False
