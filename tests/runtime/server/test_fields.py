"""Fields that change how an answer is given rather than what it says, and those that change nothing."""

import json
import logging
import socket
from typing import Any

import pytest

from observing import deaf_client, eventually


def ask(content: str = "abc", **extra: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], "temperature": 0, **extra}


def chat(server: Any, **extra: Any) -> Any:
    return server.client.post("/v1/chat/completions", json=ask(**extra))


def events(text: str) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]


def test_null_is_the_same_as_absent(shared_server: Any) -> None:
    fields = "temperature top_p top_k min_p seed stop n best_of stream stream_options logit_bias response_format tools"
    fields += " tool_choice parallel_tool_calls logprobs top_logprobs max_tokens max_completion_tokens min_tokens user"
    fields += " ignore_eos stop_token_ids presence_penalty frequency_penalty repetition_penalty thinking timeout"
    answer = chat(shared_server, **dict.fromkeys(fields.split()))
    assert answer.json()["choices"][0]["message"]["content"] == "abc"


def test_unknown_fields_are_accepted_and_told_to_the_log_once(
    shared_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert chat(shared_server, mystery=1, user="me", store=True).status_code == 200
    assert [record.getMessage() for record in caplog.records] == [
        "requests have the field 'mystery', which is not known here and ignored"
    ]


def test_usage_on_every_chunk_if_asked_for(shared_server: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(chat(shared_server, stream=True, stream_options=options).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1], chunks[-1]["choices"]) == (0, 4, [])


def test_usage_has_the_names_of_both_openai_and_deepseek(shared_server: Any) -> None:
    body = ask("a question that was asked before, word for word, by this test only")
    shared_server.client.post("/v1/chat/completions", json=body)
    usage = shared_server.client.post("/v1/chat/completions", json=body).json()["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == usage["prompt_cache_hit_tokens"] > 0
    assert usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"] - cached
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("kind", ["text", "ids"])
def test_echo_puts_the_prompt_in_front(shared_server: Any, kind: str) -> None:
    prompt = "abc" if kind == "text" else shared_server.tokenizer.encode("abc")
    body = {"model": "echo", "prompt": [prompt, prompt], "n": 2, "max_tokens": 2, "temperature": 0}
    plain = shared_server.client.post("/v1/completions", json=body).json()["choices"]
    echoed = shared_server.client.post("/v1/completions", json=body | {"echo": True}).json()["choices"]
    assert [choice["text"] for choice in echoed] == ["abc" + choice["text"] for choice in plain]
    stream = events(shared_server.client.post("/v1/completions", json=body | {"echo": True, "stream": True}).text)
    for choice in echoed:
        parts = [chunk["choices"][0] for chunk in stream if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"echo": True, "logprobs": 1}, "echo with logprobs"),
        ({"suffix": "x"}, "not supported"),
        ({"echo": True, "prompt": [-1]}, "token id -1"),
    ],
)
def test_what_completions_cannot_do_is_refused(shared_server: Any, change: dict[str, Any], word: str) -> None:
    response = shared_server.client.post("/v1/completions", json={"model": "echo", "prompt": "a", **change})
    assert response.status_code == 400
    assert word in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["embeddings", "images/generations", "audio/speech", "moderations", "files"])
def test_other_apis_are_not_found_in_the_one_envelope(shared_server: Any, path: str) -> None:
    response = shared_server.client.post(f"/v1/{path}", json={"model": "echo", "input": "a"})
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("body", "headers"),
    [({"timeout": 0.2}, {}), ({}, {"X-Request-Timeout": "0.2"}), ({"timeout": 9}, {"X-Request-Timeout": "0.2"})],
)
def test_a_request_can_have_less_time_than_the_server_allows(
    server: Any, body: dict[str, Any], headers: dict[str, str]
) -> None:
    server.executor.gate.clear()
    response = server.client.post("/v1/chat/completions", json=ask(**body), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    assert "0.2 s" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "0"])
def test_a_time_that_is_none_is_refused(shared_server: Any, value: str) -> None:
    headers = {"X-Request-Timeout": value}
    response = shared_server.client.post("/v1/chat/completions", json=ask(), headers=headers)
    assert response.status_code == 400
    assert "X-Request-Timeout" in response.json()["error"]["message"]


def test_seeds_of_64_bits_are_taken(shared_server: Any) -> None:
    for seed in (-(2**63), 2**63 - 1):
        assert chat(shared_server, seed=seed, n=2, temperature=1).status_code == 200


@pytest.mark.parametrize("limits", [{"unread_limit": 20}, {"send_timeout": 0.1}], ids=["tokens", "time"])
def test_a_client_that_does_not_read_is_given_up(make_server: Any, limits: dict[str, Any]) -> None:
    server = make_server(**limits)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what it accepts inherits it
    server.open()
    long = ask(stream=True, ignore_eos=True, logprobs=True, top_logprobs=20, n=4)
    with deaf_client(server, "/v1/chat/completions", long):
        eventually(lambda: server.engine.stats().running == 4)
        eventually(lambda: server.engine.stats().running == 0)
        assert len(server.executor.steps) < 500
        assert chat(server).status_code == 200
