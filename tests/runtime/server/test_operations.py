"""What those see who run the server: ids of requests, its log, crashes, overload, a rank that freezes."""

import asyncio
import json
import logging
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepseek_runtime.serve import parse
from deepseek_runtime.server import access_log
from deepseek_runtime.server.limits import MIB, Bounds
from deepseek_runtime.server.middleware import Policy
from deepseek_runtime.settings import Settings
from fake_model import write_tokenizer
from tiny_checkpoint import v3_config, write_checkpoint

from .test_serve import Ranks, long_stream, two_ranks

ServerMaker = Callable[..., Any]


def ask(content: str = "abc", **extra: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], "temperature": 0, **extra}


class Lines(logging.Handler):
    """The access log's lines, as they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(record.getMessage()))

    def last(self, count: int = 1) -> dict[str, Any]:
        """The newest line, once there are so many; it is written when the answer is out already."""
        deadline = monotonic() + 5
        while len(self.lines) < count:
            assert monotonic() < deadline, self.lines
            sleep(0.005)
        return self.lines[-1]


@pytest.fixture
def log() -> Iterator[Lines]:
    handler = Lines()
    access_log.logger.addHandler(handler)
    level = access_log.logger.level
    access_log.logger.setLevel(logging.INFO)
    yield handler
    access_log.logger.removeHandler(handler)
    access_log.logger.setLevel(level)


@pytest.mark.parametrize("given", ["abc-123", "01J:trace/7_x.y", "a" * 128])
def test_a_sane_request_id_comes_back(shared_server: Any, log: Lines, given: str) -> None:
    response = shared_server.client.post("/v1/chat/completions", json=ask(), headers={"x-request-id": given})
    assert response.headers["x-request-id"] == log.last()["id"] == given


@pytest.mark.parametrize("given", [None, "", "a" * 129, 'x"y', "two words"])
def test_any_other_request_gets_an_id_of_its_own(shared_server: Any, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given}
    paths = ["/v1/models", "/nowhere", "/livez"]
    ids = [shared_server.client.get(path, headers=headers).headers["x-request-id"] for path in paths]
    assert len({*ids, given}) == 4
    assert all(len(id_) == 32 for id_ in ids)


@pytest.mark.parametrize("stream", [False, True])
def test_a_line_tells_everything_but_what_was_said(shared_server: Any, log: Lines, stream: bool) -> None:
    body = ask("top secret words", n=2, stream=stream, user="somebody", max_tokens=5)
    response = shared_server.client.post("/v1/chat/completions?key=hidden", json=body)
    line = log.last()
    assert {name: line[name] for name in ("id", "method", "path", "status", "finish_reasons")} == {
        "id": response.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "finish_reasons": ["length", "length"],
    }
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] == 10
    assert line["client"].startswith("127.0.0.1:")
    assert 0 < line["first_token_seconds"] <= line["last_byte_seconds"] <= line["duration_seconds"]
    assert "cause" not in line
    text = json.dumps(log.lines)
    assert not any(word in text for word in ("secret", "somebody", "hidden"))


@pytest.mark.parametrize(
    ("path", "body", "status", "cause"),
    [
        ("/v1/chat/completions", ask(model="other"), 404, "model_not_found"),
        ("/v1/chat/completions", {}, 400, "invalid_request_error"),
        ("/v1/chat/completions", ask("a" * 600), 400, "context_length_exceeded"),
        ("/nowhere", {}, 404, "not_found_error"),
    ],
)
def test_a_line_tells_the_cause_of_a_refusal(
    shared_server: Any, log: Lines, path: str, body: dict[str, Any], status: int, cause: str
) -> None:
    assert shared_server.client.post(path, json=body).status_code == status
    assert (log.last()["status"], log.last()["cause"]) == (status, cause)


@pytest.mark.parametrize("stream", [False, True])
def test_a_line_tells_that_the_client_left(server: Any, log: Lines, stream: bool) -> None:
    server.executor.gate.clear()
    body = ask(stream=stream, ignore_eos=True)
    with httpx.Client(base_url=server.url, timeout=0.3) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/v1/chat/completions", json=body)
    line = log.last()
    assert (line["status"], line["cause"]) == (200 if stream else 499, "client_disconnect")
    assert line["finish_reasons"] == ["client_disconnect"]


def test_a_line_tells_that_time_was_over(make_server: ServerMaker, log: Lines) -> None:
    server = make_server(request_timeout=0.2)
    server.open()
    server.executor.gate.clear()
    with server.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        response.read()
    assert (log.last()["status"], log.last()["cause"]) == (200, "timeout")


def test_probes_scrapes_and_the_page_are_not_news(shared_server: Any, log: Lines) -> None:
    for path in ("/livez", "/readyz", "/health", "/metrics", "/", "/version"):
        shared_server.client.get(path)
    assert [log.last()["path"], len(log.lines)] == ["/version", 1]


def test_a_bug_of_ours_is_an_error_with_an_id_and_no_end_of_the_connection(
    make_server: ServerMaker, log: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(_: Request) -> Response:
        raise ZeroDivisionError("secret detail")

    server = make_server()
    server.http.app.router.routes.insert(0, Route("/crash", crash))
    response = server.client.get("/crash", headers={"x-request-id": "this-one"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "this-one")
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "request this-one failed" in caplog.text
    assert "secret detail" in caplog.text
    assert (log.last()["status"], log.last()["cause"]) == (500, "internal_error")


def test_ten_times_as_much_as_there_is_room_for_is_answered_or_told_to_wait(make_server: ServerMaker) -> None:
    """Twelve places, 120 clients that each ask three times: some are refused, all in order, and nothing is left."""
    server = make_server(max_running=4, max_queued=8, bounds=Bounds(requests=60))
    server.open()
    asyncio.run(storm(server.url, clients=120, times=1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = asyncio.run(storm(server.url, clients=120, times=3))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert set(statuses) == {200, 429}
    assert statuses.total() == 360
    assert statuses[200] >= 12
    assert grown < 100 * 1024  # KiB
    stats = server.engine.stats()
    assert (stats.running, stats.waiting, stats.cache_usage, server.state.metrics.in_flight) == (0, 0, 0, 0)
    assert server.client.post("/v1/chat/completions", json=ask()).status_code == 200
    refused = sum(
        server.metric(line.split()[0])
        for line in server.client.get("/metrics").text.splitlines()
        if line.startswith("dsv3_requests_rejected_total{")
    )
    assert refused >= statuses[429]


async def storm(url: str, *, clients: int, times: int) -> Counter[int]:
    """Statuses of all answers; whoever is refused is told when to come back."""
    statuses: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def work(number: int) -> None:
            for round_ in range(times):
                body = ask("a" * 200, stream=bool((number + round_) % 2))
                response = await client.post("/v1/chat/completions", json=body)
                statuses[response.status_code] += 1
                if response.status_code == 429:
                    assert int(response.headers["retry-after"]) > 0
                    assert response.json()["error"]["code"] in ("queue_full", "too_many_requests")

        await asyncio.gather(*map(work, range(clients)))
    return statuses


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tokenizer(tmp_path_factory.mktemp("operations"))
    write_checkpoint(folder, v3_config(vocab_size=272, max_position_embeddings=4096))
    return folder


def test_readiness_names_the_rank_that_is_frozen_before_the_group_ends(checkpoint: Path) -> None:
    with two_ranks(checkpoint) as ranks:
        try:
            with long_stream(ranks, max_tokens=4000):
                ranks.processes[1].send_signal(signal.SIGSTOP)
                body = stalled(ranks)
                assert httpx.get(f"http://127.0.0.1:{ranks.health_port}/livez").status_code == 200
        finally:
            ranks.processes[1].send_signal(signal.SIGCONT)
            ranks.terminate()
        assert ranks.codes(within=20) == [0, 0]
    assert (body["status"], body["stalled_rank"]) == ("stalled rank 1", 1)
    assert body["stalled_seconds"] > 1
    assert "rank 1" in body["message"]


def stalled(ranks: Ranks) -> dict[str, Any]:
    """What readiness says when it first says no."""
    deadline = monotonic() + 30
    while (answer := httpx.get(f"http://127.0.0.1:{ranks.health_port}/readyz")).status_code == 200:
        assert monotonic() < deadline
        sleep(0.05)
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ({"max_body_mib": 0}, "--max-body-mib must be more than 0 and finite, not 0"),
        ({"max_requests": -1}, "--max-requests must be more than 0 and finite, not -1"),
        ({"max_connections": 0}, "--max-connections must be more than 0 and finite, not 0"),
        ({"body_timeout": float("nan")}, "--body-timeout must be more than 0 and finite, not nan"),
    ],
)
def test_a_limit_that_lets_nobody_in_is_refused_in_a_sentence(flag: dict[str, Any], sentence: str) -> None:
    assert Settings(model=Path(), served_model_name=("m",), **flag).problem() == sentence


def test_flags_reach_the_doors_policy(tmp_path: Path) -> None:
    flags = ["--protect-metrics", "--protect-probes", "--no-chat-page", "--no-access-log"]
    flags += ["--max-body-mib", "3", "--max-requests", "4", "--max-connections", "5", "--body-timeout", "6.5"]
    settings = parse(["--model", "tutor", "--api-key-folder", str(tmp_path), *flags])
    assert not settings.access_log
    assert Policy.of(settings) == Policy(
        api_key_folder=tmp_path,
        protect_metrics=True,
        protect_probes=True,
        chat_page=False,
        bounds=Bounds(body=3 * MIB, requests=4, connections=5, body_seconds=6.5),
    )
    assert Policy.of(parse(["--model", "tutor"])) == Policy()
