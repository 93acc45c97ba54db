"""Tool calls as clients see them: in both wire forms, whole and streamed, chosen in every way."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Rom"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "?", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "clock"}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}
ONLY_CLOCK: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "clock"}}]}
MARKS = ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
BEGIN, END, CALL, CALL_END, SEP = (f"<｜tool▁{mark}｜>" for mark in MARKS)


def bare(*calls: tuple[str, str]) -> str:
    return BEGIN + "".join(f"{CALL}{name}{SEP}{arguments}{CALL_END}" for name, arguments in calls) + END


def fenced(*calls: tuple[str, str]) -> str:
    written = [f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}" for name, arguments in calls]
    return BEGIN + "\n".join(written) + END


WRITERS: dict[str, Callable[..., str]] = {"v3": fenced, "v3-0324": fenced, "r1": fenced, "v3.1": bare}
ARGUMENTS = '{"city": "Ulm", "days": 3}'


@pytest.fixture(params=list(WRITERS))
def written(request: pytest.FixtureRequest, release_server: Callable[[str], Any]) -> tuple[Any, Callable[..., str]]:
    """A release's server, and what writes calls in its form."""
    return release_server(request.param), WRITERS[request.param]


@pytest.fixture
def v31(release_server: Callable[[str], Any]) -> Any:
    return release_server("v3.1")


def request(script: str, server: Any, **extra: Any) -> dict[str, Any]:
    server.executor.say(script)
    body = {"model": "echo", "messages": [{"role": "user", "content": "?"}], "temperature": 0, "tools": TOOLS}
    return body | extra


def whole(server: Any, script: str, **extra: Any) -> dict[str, Any]:
    response = server.client.post("/v1/chat/completions", json=request(script, server, **extra))
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def streamed(server: Any, script: str, **extra: Any) -> list[dict[str, Any]]:
    response = server.client.post("/v1/chat/completions", json=request(script, server, stream=True, **extra))
    assert response.status_code == 200, response.text
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(event)["choices"][0] for event in events]


def assembled(chunks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Calls put together as OpenAI's clients do it, with the order of deltas checked."""
    calls: list[dict[str, Any]] = []
    for delta in (chunk["delta"] for chunk in chunks):
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                assert set(part) == {"index", "id", "type", "function"}
                assert part["id"].startswith("call_")
                assert (part["type"], part["function"]["arguments"]) == ("function", "")
                calls.append(part["function"])
            else:
                assert set(part) == {"index", "function"}
                assert set(part["function"]) == {"arguments"}
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
    return [(call["name"], call["arguments"]) for call in calls]


def calls_of(choice: dict[str, Any]) -> list[tuple[str, str]]:
    calls = choice["message"].get("tool_calls", [])
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_calls_in_either_wire_form_come_out_alike_whole_and_streamed(written: tuple[Any, Callable[..., str]]) -> None:
    server, write = written
    calls = [("weather", ARGUMENTS), ("clock", "{}")]
    thought = "hm</think>" if server.service.template.dialect.thinking == "always" else ""
    script = f"{thought}Let me see.{write(*calls)}"
    choice = whole(server, script)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Let me see.", "tool_calls")
    assert calls_of(choice) == calls
    chunks = streamed(server, script)
    assert assembled(chunks) == calls
    assert chunks[-1]["finish_reason"] == "tool_calls"
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == "Let me see."
    assert not any("｜" in json.dumps(chunk["delta"], ensure_ascii=False) for chunk in chunks)


def test_a_call_alone_has_null_content(v31: Any) -> None:
    assert whole(v31, bare(("clock", "{}")))["message"]["content"] is None


def test_the_sdk_reads_a_stream_of_calls(v31: Any) -> None:
    body = request(bare(("weather", ARGUMENTS)), v31)
    with v31.openai.chat.completions.stream(**body) as stream:
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Ulm", "days": 3})


CHOICES: list[tuple[Any, str, str]] = [
    ("none", "stop", "stop"),
    ("auto", "stop", "tool_calls"),
    ("required", "tool_calls", "tool_calls"),
    (NAMED, "stop", "stop"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", **ONLY_CLOCK}}, "stop", "tool_calls"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "required", **ONLY_CLOCK}}, "tool_calls", "tool_calls"),
]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("choice", "unwilling", "willing"), CHOICES)
def test_one_table_decides_the_finish_reason(
    v31: Any, choice: Any, unwilling: str, willing: str, stream: bool, thinking: bool
) -> None:
    """Documented in docs/http-api.md: by how the answer ended, whether it has a call, and whether that was named."""
    extra: dict[str, Any] = {"tool_choice": choice, "thinking": {"type": "enabled" if thinking else "disabled"}}
    thought = "hm</think>" if thinking else ""
    call = bare(("clock", "{}")) if choice not in ("none", NAMED) else bare(("weather", ARGUMENTS))
    for script, expected in ((f"{thought}no tools", unwilling), (f"{thought}{call}", willing)):
        if stream:
            chunks = streamed(v31, script, **extra)
            calls, reason = assembled(chunks), chunks[-1]["finish_reason"]
            reasoning = "".join(chunk["delta"].get("reasoning_content", "") for chunk in chunks)
        else:
            answer = whole(v31, script, **extra)
            calls, reason = calls_of(answer), answer["finish_reason"]
            reasoning = answer["message"].get("reasoning_content", "")
        assert reason == expected
        assert reasoning == ("hm" if thinking else "")
        assert bool(calls) == (choice == NAMED or expected == "tool_calls")
        for name, arguments in calls:
            schema = CITY if name == "weather" else {"type": "object"}
            jsonschema.validate(json.loads(arguments), schema)
            if isinstance(choice, dict):
                assert name == ("weather" if choice == NAMED else "clock")


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_ends_by_length(v31: Any, stream: bool) -> None:
    script = bare(("weather", ARGUMENTS))
    answer = streamed(v31, script, max_tokens=20)[-1] if stream else whole(v31, script, max_tokens=20)
    assert answer["finish_reason"] == "length"


def test_without_parallel_calls_there_is_one(v31: Any) -> None:
    script = bare(("clock", "{}"), ("clock", "{}"))
    assert len(calls_of(whole(v31, script))) == 2
    assert calls_of(whole(v31, script, parallel_tool_calls=False)) == [("clock", "{}")]


def test_a_choice_of_none_shows_the_model_no_tools(v31: Any) -> None:
    def prompt_tokens(**extra: Any) -> int:
        body = request("", v31, **extra)
        tokens: int = v31.client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
        return tokens

    assert prompt_tokens(tool_choice="none") == prompt_tokens(tools=[]) < prompt_tokens()


def test_a_conversation_goes_on_behind_a_tools_result(v31: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    messages = [
        {"role": "user", "content": "How is Ulm?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    choice = whole(v31, "Sunny.", messages=messages)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Sunny.", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_functions_of_old_clients_are_answered_in_kind(v31: Any, stream: bool) -> None:
    extra = {"tools": None, "functions": [tool["function"] for tool in TOOLS], "function_call": "auto"}
    script = bare(("weather", ARGUMENTS))
    if stream:
        chunks = streamed(v31, script, **extra)
        parts = [chunk["delta"]["function_call"] for chunk in chunks if "function_call" in chunk["delta"]]
        call = {"name": parts[0]["name"], "arguments": "".join(part["arguments"] for part in parts)}
        reason = chunks[-1]["finish_reason"]
    else:
        choice = whole(v31, script, **extra)
        call, reason = choice["message"]["function_call"], choice["finish_reason"]
    assert (call, reason) == ({"name": "weather", "arguments": ARGUMENTS}, "function_call")


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, None, "'x', which is not among the tools"),
        ({"tool_choice": "perhaps"}, "tool_choice.mode", "'auto'"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": 5}}, "tool_choice", "list of tools"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [5]}}, "tool_choice.names.0", "valid string"),
        ({"tool_choice": {"type": "function", "function": 5}}, "tool_choice.names.0", "valid string"),
        ({"tools": None, "functions": [5]}, "tools.0.function", "valid dictionary"),
        ({"messages": [{"role": "assistant", "function_call": 5}]}, "messages.0.tool_calls.0", "valid dictionary"),
        ({"tools": [{"type": "web_search"}]}, "tools.0", "'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        (
            {"tools": [{"function": {"name": "f", "strict": True, "parameters": {"not": {}}}}]},
            "tools",
            "tool 'f': the schema uses 'not'",
        ),
    ],
)
def test_wrong_tools_are_refused_in_a_sentence(v31: Any, change: dict[str, Any], param: str | None, word: str) -> None:
    response = v31.client.post("/v1/chat/completions", json=request("", v31, **change))
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert word in error["message"]
    assert param is None or error["param"].startswith(param)


def test_a_model_of_no_known_form_refuses_tools(release_server: Callable[[str], Any]) -> None:
    server = release_server("kimi")
    assert server.openai.models.retrieve("echo").model_dump()["capabilities"]["tools"] is False
    response = server.client.post("/v1/chat/completions", json=request("", server))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "tools")
    assert "no known form for tool calls" in error["message"]
    assert whole(server, "Hello.", tool_choice="none")["message"]["content"] == "Hello."


def test_beside_a_form_for_content_the_model_calls_or_answers_in_that_form(v31: Any) -> None:
    schema = {"name": "x", "strict": True, "schema": {"enum": ["yes", "no"]}}
    extra = {"response_format": {"type": "json_schema", "json_schema": schema}}
    called = whole(v31, bare(("weather", ARGUMENTS)), **extra)
    assert called["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ARGUMENTS}
    assert called["finish_reason"] == "tool_calls"
    answered = whole(v31, "Hm, yes.", **extra)
    assert json.loads(answered["message"]["content"]) in ("yes", "no")
    assert answered["message"].get("tool_calls") is None
