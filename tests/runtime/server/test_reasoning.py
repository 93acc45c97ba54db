"""Reasoning apart from the answer, however it was asked for and wherever it begins."""

from collections.abc import Callable
from typing import Any

import pytest

ON: list[dict[str, Any]] = [
    {"chat_template_kwargs": {"thinking": True}},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"thinking": {"type": "enabled"}},
    {"reasoning_effort": "high"},
    {"reasoning_effort": "none", "thinking": {"type": "enabled"}},
]
OFF: list[dict[str, Any]] = [
    {},
    {"chat_template_kwargs": {"thinking": False}},
    {"thinking": {"type": "disabled"}},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
]


@pytest.fixture
def v31(release_server: Callable[[str], Any]) -> Any:
    return release_server("v3.1")


def ask(server: Any, script: str, **extra: Any) -> dict[str, Any]:
    """The choice that a scripted model makes, the same whole as in a stream."""
    server.executor.say(script)
    body = {"model": "echo", "messages": [{"role": "user", "content": "?"}], "temperature": 0, **extra}
    whole = server.client.post("/v1/chat/completions", json=body).json()
    choice: dict[str, Any] = whole["choices"][0]
    chunks = list(server.openai.chat.completions.create(**_for_sdk(body), stream=True))
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
    for name in ("content", "reasoning_content", "reasoning"):
        assert "".join(delta.get(name) or "" for delta in deltas) == (choice["message"].get(name) or "")
    assert chunks[-1].choices[0].finish_reason == choice["finish_reason"]
    assert not any("think" in (delta["content"] or "") for delta in deltas)
    return {**choice, "usage": whole["usage"]}


def _for_sdk(body: dict[str, Any]) -> dict[str, Any]:
    """Fields that the SDK has no parameter for go into its extra_body."""
    extras = {"chat_template_kwargs", "thinking"}
    extra = {name: value for name, value in body.items() if name in extras}
    return {**{name: value for name, value in body.items() if name not in extras}, "extra_body": extra}


@pytest.mark.parametrize("switch", ON)
def test_what_comes_before_the_mark_is_reasoning_when_thinking_is_on(v31: Any, switch: dict[str, Any]) -> None:
    choice = ask(v31, "abc</think>def", **switch)
    assert (choice["message"]["reasoning_content"], choice["message"]["reasoning"]) == ("abc", "abc")
    assert (choice["message"]["content"], choice["finish_reason"]) == ("def", "stop")
    assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4
    assert choice["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("switch", OFF)
def test_everything_is_content_when_thinking_is_off(v31: Any, switch: dict[str, Any]) -> None:
    choice = ask(v31, "abc def", **switch)
    assert choice["message"] == {"role": "assistant", "content": "abc def"}
    assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_reasoning_that_is_cut_leaves_the_content_null(v31: Any) -> None:
    choice = ask(v31, "abcdef</think>gh", max_tokens=4, thinking={"type": "enabled"})
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("abcd", None)
    assert choice["finish_reason"] == "length"
    assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


def test_the_end_of_an_old_turns_reasoning_is_not_the_end_of_this_one(v31: Any) -> None:
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>x</think>2"},
        {"role": "user", "content": "3"},
    ]
    choice = ask(v31, "abc</think>def", messages=messages, thinking={"type": "enabled"})
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("abc", "def")


def test_reasoning_that_the_model_opens_itself_is_reasoning_too(v31: Any) -> None:
    choice = ask(v31, "<think>abc</think>def")
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("abc", "def")
    assert choice["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


def test_a_release_that_always_reasons_needs_no_switch(release_server: Callable[[str], Any]) -> None:
    choice = ask(release_server("r1"), "abc</think>def", reasoning_effort="none")
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("abc", "def")


def test_a_stop_string_ends_the_answer_behind_the_reasoning(v31: Any) -> None:
    choice = ask(v31, "abc</think>def.ghi", stop=".", thinking={"type": "enabled"})
    assert (choice["message"]["content"], choice["finish_reason"]) == ("def", "stop")


@pytest.mark.parametrize(("name", "reasoning"), [("v3", "never"), ("r1", "always"), ("v3.1", "switch")])
def test_a_models_card_says_what_it_can_do(release_server: Callable[[str], Any], name: str, reasoning: str) -> None:
    card = release_server(name).openai.models.retrieve("org/echo").model_dump()
    assert card["capabilities"]["reasoning"] == reasoning
    assert card["capabilities"]["reasoning_variable"] == ("thinking" if reasoning == "switch" else None)
    assert card["capabilities"]["tools"] is True
    assert card["max_model_len"] == 2048


def test_log_probabilities_cover_the_reasoning_too(v31: Any) -> None:
    choice = ask(v31, "abc</think>def", thinking={"type": "enabled"}, logprobs=True)
    texts = [bytes(entry["bytes"]).decode() for entry in choice["logprobs"]["content"]]
    assert texts[:7] == ["a", "b", "c", "</think>", "d", "e", "f"]
    assert len(texts) == choice["usage"]["completion_tokens"]
