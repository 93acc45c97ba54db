"""What the core guarantees holds above it too: refusal before 200, signs of life, clean failures, nothing held."""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from deepseek_runtime.health import Phase
from deepseek_runtime.text.grammar import GrammarMask
from observing import at_rest, deaf_client, eventually

RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
DELTAS = {RESPONSES: "response.output_text.delta", MESSAGES: "content_block_delta"}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
FORMS: dict[str, dict[str, Any]] = {
    RESPONSES: {"text": {"format": {**SCHEMA, "name": "x"}}},
    MESSAGES: {"output_config": {"format": SCHEMA}},
}

both = pytest.mark.parametrize("path", [RESPONSES, MESSAGES])


def ask(path: str, **extra: Any) -> dict[str, Any]:
    """A question whose answer would take all of the context."""
    endless = {"model": "echo", "temperature": 0, "stream": True, "ignore_eos": True}
    if path == RESPONSES:
        return endless | {"input": "abc"} | extra
    return endless | {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 10_000} | extra


def events_of(text: str) -> list[dict[str, Any]]:
    """All events of a stream, with names and types that agree."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@contextmanager
def long_stream(server: Any, path: str) -> Iterator[Iterator[str]]:
    """A stream that has shown its first words."""
    with server.client.stream("POST", path, json=ask(path)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        next(line for line in lines if line == f"event: {DELTAS[path]}")
        yield lines


def slow_down(server: Any, steps: int = 5) -> None:
    """From now on each step needs permission; the first few have it."""
    server.executor.gate.clear()
    for _ in range(steps):
        server.executor.steps_allowed.release()


@both
def test_a_full_queue_answers_429_also_to_streams(make_server: Any, path: str) -> None:
    server = make_server(max_running=1, max_queued=0)
    server.open()
    slow_down(server)
    with long_stream(server, path):
        refused = server.client.post(path, json=ask(path))
        server.executor.gate.set()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"


@both
@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_frees_everything(server: Any, path: str, streamed: bool) -> None:
    slow_down(server)
    if streamed:
        with long_stream(server, path):
            assert server.engine.stats().running == 1
    else:
        with httpx.Client(base_url=server.url, timeout=0.3) as impatient, pytest.raises(httpx.ReadTimeout):
            impatient.post(path, json=ask(path, stream=False))
    line = 'dsv3_requests_finished_total{finished_reason="client_disconnect"} 1.0'
    eventually(lambda: line in server.client.get("/metrics").text)
    server.executor.gate.set()
    eventually(lambda: at_rest(server))
    assert len(server.executor.steps) < 20


@pytest.mark.parametrize(("path", "sign"), [(RESPONSES, ": keep-alive"), (MESSAGES, "event: ping")])
def test_a_silent_stream_shows_life(make_server: Any, path: str, sign: str) -> None:
    server = make_server(keep_alive=0.02)
    server.open()
    slow_down(server)
    with long_stream(server, path) as lines:
        for _ in range(3):
            next(line for line in lines if line == sign)
        server.executor.gate.set()
        assert any(line in ("event: response.incomplete", "event: message_stop") for line in lines)


@both
def test_an_answer_that_takes_too_long_is_504_or_an_event(make_server: Any, path: str) -> None:
    server = make_server(request_timeout=0.2)
    server.open()
    server.executor.gate.clear()
    whole = server.client.post(path, json=ask(path, stream=False))
    assert whole.status_code == 504
    events = events_of(server.client.post(path, json=ask(path)).text)
    server.executor.gate.set()
    assert whole.json()["error"]["message"] == events[-1]["error"]["message"] == "no complete answer within 0.2 s"
    assert events[-1]["type"] == "error"
    eventually(lambda: at_rest(server))


def fail(self: GrammarMask, generated: Sequence[int], /) -> NDArray[np.bool_]:
    raise RuntimeError("the parser is lost")


def test_a_response_that_fails_midway_says_so_in_its_own_events(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrammarMask, "__call__", fail)
    events = events_of(server.client.post(RESPONSES, json=ask(RESPONSES, **FORMS[RESPONSES])).text)
    *_, failed, error = events
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"
    assert "the parser is lost" in failed["response"]["error"]["message"]
    assert (error["type"], error["code"]) == ("error", "answer_failed")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    with pytest.raises(openai.APIError, match="the parser is lost"):
        list(server.openai.responses.create(model="echo", input="a", stream=True, text=FORMS[RESPONSES]["text"]))
    assert at_rest(server)


def test_a_message_that_fails_midway_says_so_in_its_own_events(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrammarMask, "__call__", fail)
    response = server.client.post(MESSAGES, json=ask(MESSAGES, **FORMS[MESSAGES]))
    start, error = events_of(response.text)
    assert start["type"] == "message_start"
    assert (error["error"]["type"], error["request_id"]) == ("api_error", response.headers["x-request-id"])
    assert "the parser is lost" in error["error"]["message"]
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    fields: Any = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    with client, pytest.raises(anthropic.APIError, match="the parser is lost"):
        list(client.messages.create(**fields, **FORMS[MESSAGES], stream=True))
    assert at_rest(server)


@pytest.mark.parametrize("limits", [{"unread_limit": 20}, {"send_timeout": 0.1}], ids=["tokens", "time"])
def test_a_client_that_does_not_read_is_given_up(make_server: Any, limits: dict[str, Any]) -> None:
    server = make_server(**limits)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what it accepts inherits it
    server.open()
    slow_down(server, steps=40)
    repeated = ask(RESPONSES, metadata={"long": "x" * 500_000})  # what it said itself comes back in the response
    with deaf_client(server, RESPONSES, repeated):
        line = 'dsv3_requests_finished_total{finished_reason="slow_client"} 1.0'
        eventually(lambda: line in server.client.get("/metrics").text)
        server.executor.gate.set()
        eventually(lambda: at_rest(server))


@both
def test_a_draining_server_refuses_what_is_new(make_server: Any, path: str) -> None:
    server = make_server()
    server.open()
    server.health.enter(Phase.DRAINING)
    response = server.client.post(path, json=ask(path))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
