"""A request can be ended from outside, by the id that its client gave it."""

import json
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

import pytest


def ask(**extra: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": "abc"}], "ignore_eos": True, **extra}


def wait_until_running(server: Any) -> None:
    deadline = monotonic() + 10
    while not server.engine.stats().running:
        assert monotonic() < deadline
        sleep(0.005)


@pytest.mark.parametrize("path", ["/abort", "/v1/abort"])
def test_an_aborted_request_ends_with_an_error_and_frees_its_place(server: Any, path: str) -> None:
    server.executor.gate.clear()
    with ThreadPoolExecutor() as pool:
        headers = {"X-Request-Id": "mine"}
        whole = pool.submit(server.client.post, "/v1/chat/completions", json=ask(n=2), headers=headers)
        wait_until_running(server)
        assert server.client.post(path, json={"request_id": "mine"}).json() == {"request_id": "mine", "aborted": 1}
        response = whole.result()
    assert (response.status_code, response.json()["error"]["code"]) == (400, "aborted")
    server.executor.gate.set()
    deadline = monotonic() + 10
    while server.engine.stats().running:
        assert monotonic() < deadline
        sleep(0.005)


def test_an_aborted_stream_ends_with_an_error(server: Any) -> None:
    server.executor.gate.clear()
    headers = {"X-Request-Id": "mine"}
    with server.client.stream("POST", "/v1/chat/completions", json=ask(stream=True), headers=headers) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        server.client.post("/abort", json={"request_id": "mine"})
        last = list(lines)[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "aborted"


def test_there_is_nothing_to_abort_once_it_is_over(server: Any) -> None:
    headers = {"X-Request-Id": "mine"}
    server.client.post("/v1/chat/completions", json=ask(max_tokens=1), headers=headers)
    response = server.client.post("/abort", json={"request_id": "mine"})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "request_id")
