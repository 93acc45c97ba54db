"""A chat answer of one choice, the same whether it came whole or in a stream, and the tokens that it was made of."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

Body = dict[str, Any]


@dataclass
class ChatAnswer:
    """What was said, each call as a name and the text of its arguments, and why it ended: None where it did not.

    `raw` is all that the model wrote, marks and end included, where the request asked for `logprobs`.
    """

    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish_reason: str | None = None
    raw: bytes = b""


def ask_whole(client: httpx.Client, body: Body) -> ChatAnswer:
    """Ask for an answer in one piece; AssertionError for any status but 200."""
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for call in choice["message"].get("tool_calls") or ()
    ]
    return ChatAnswer(choice["message"]["content"] or "", calls, choice["finish_reason"], _written(choice))


def ask_streamed(client: httpx.Client, body: Body) -> ChatAnswer:
    """Ask for a stream and put it together; AssertionError unless it ends as a good stream does."""
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read().decode()
        return assembled(response.iter_lines())


def assembled(lines: Iterable[str]) -> ChatAnswer:
    """The answer that the lines of a stream make."""
    *events, end = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert end == "[DONE]", f"the stream ended with {end}"
    answer = ChatAnswer()
    for event in map(json.loads, events):
        for choice in event["choices"]:
            _add(answer, choice["delta"])
            answer.finish_reason = choice["finish_reason"] or answer.finish_reason
            answer.raw += _written(choice)
    return answer


def _add(answer: ChatAnswer, delta: Body) -> None:
    answer.content += delta.get("content") or ""
    for call in delta.get("tool_calls", ()):
        function = call["function"]
        if call["index"] == len(answer.calls):
            answer.calls.append((function["name"], ""))
        name, arguments = answer.calls[call["index"]]
        answer.calls[call["index"]] = (name, arguments + function.get("arguments", ""))


def _written(choice: Body) -> bytes:
    """The bytes of all tokens."""
    return b"".join(bytes(token["bytes"]) for token in (choice.get("logprobs") or {}).get("content") or ())
