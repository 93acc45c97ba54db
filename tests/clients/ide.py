"""An editor's assistant: streams with tools and large contexts over plain HTTP, and is strict about every event."""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
from openai_sync import TOOL, check_arguments

EDITOR = {
    "model": "test",
    "stream": True,
    "temperature": 0,
    "tools": [TOOL, {"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}],
    "stream_options": {"include_usage": True},
    "metadata": {"session": "1"},
    "user": "editor",
    "some_field_of_its_own": {"a": 1},
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "You edit files. " * 50}]},
        {"role": "user", "content": "What is 12 plus 30?", "name": "me"},
    ],
}


def main() -> None:
    with httpx.Client(base_url=os.environ["OPENAI_BASE_URL"], timeout=60) as client:
        content = list(events(client, {**EDITOR, "tool_choice": "none"}))
        assert "".join(delta(chunk).get("content") or "" for chunk in content if chunk["choices"])
        calls = list(
            events(client, {**EDITOR, "tool_choice": {"type": "function", "function": {"name": "set_temperature"}}})
        )
        pieces = [call for chunk in calls if chunk["choices"] for call in delta(chunk).get("tool_calls", [])]
        assert pieces[0]["type"] == "function"
        assert {piece["index"] for piece in pieces} == {0}
        check_arguments(pieces[0]["function"]["name"], "".join(piece["function"]["arguments"] for piece in pieces))
        for chunks in (content, calls):
            assert [bool(chunk["choices"]) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
            reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
            assert reasons[-1]
            assert not any(reasons[:-1])


def delta(chunk: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = chunk["choices"][0]["delta"]
    return part


def events(client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Chunks of a stream whose framing is exactly as documented."""
    with client.stream("POST", "chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        raw = "".join(response.iter_text())
    assert raw.endswith("data: [DONE]\n\n")
    for event in raw.removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]:
        if not event.startswith(":"):
            yield json.loads(event.removeprefix("data: "))


if __name__ == "__main__":
    main()
