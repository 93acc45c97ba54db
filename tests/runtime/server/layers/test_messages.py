"""The Messages API as Anthropic's own client reads it, whole and in events."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import anthropic
import pytest
from pydantic import BaseModel

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Rom"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"name": "weather", "description": "?", "input_schema": CITY, "strict": True},
    {"name": "clock", "type": "custom", "input_schema": {"type": "object"}},
]
BEGIN, END, CALL, CALL_END, SEP = (
    f"<｜tool▁{mark}｜>" for mark in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
)
TWO_CALLS = f'{BEGIN}{CALL}weather{SEP}{{"city": "Ulm"}}{CALL_END}{CALL}clock{SEP}{{}}{CALL_END}{END}'
QUESTION: Any = [{"role": "user", "content": "?"}]
GREEDY = {"temperature": 0}
"""The API has the field, its client no longer."""

ON: Any = {"type": "enabled", "budget_tokens": 99}


@pytest.fixture
def v31(release_server: Callable[[str], Any]) -> Iterator[Any]:
    """A server whose model is scripted, with a client of its own."""
    server = release_server("v3.1")
    with client_of(server) as client:
        server.anthropic = client
        yield server


def client_of(server: Any, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, **{"api_key": "none", "max_retries": 0, **options})


def create(server: Any, script: str, **fields: Any) -> Any:
    """The message that answers, after it was seen to be the same whole and streamed."""
    server.executor.say(script)
    fields = {"model": "echo", "messages": QUESTION, "max_tokens": 100, "extra_body": GREEDY, **fields}
    whole = server.anthropic.messages.create(**fields)
    with server.anthropic.messages.stream(**fields) as stream:
        events = [event for event in stream if event.type in RAW]
        streamed = stream.get_final_message()
    check_order(events)
    assert neutral(streamed) == neutral(whole)
    return whole


RAW = {
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
}


def check_order(events: list[Any]) -> None:
    """One block after the other, each started, grown and stopped."""
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index = -1
    for event, before in zip(events[1:-2], kinds, strict=False):
        if event.type == "content_block_start":
            index += 1
            assert before in ("message_start", "content_block_stop")
        else:
            assert before in ("content_block_start", "content_block_delta")
        assert event.index == index


def neutral(message: Any) -> dict[str, Any]:
    """A message without what differs between two answers to one request."""
    plain: dict[str, Any] = {name: value for name, value in message.to_dict().items() if value is not None}
    del plain["id"]
    usage = plain.pop("usage")
    usage["input_tokens"] += usage.pop("cache_read_input_tokens")
    for block in plain["content"]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    return plain | {"usage": {name: value for name, value in usage.items() if value}}


def test_a_message_is_answered_with_a_message(server: Any) -> None:
    with client_of(server) as client:
        message: Any = client.messages.create(
            model="echo", max_tokens=9, extra_body=GREEDY, messages=[{"role": "user", "content": "abc"}]
        )
    [block] = message.content
    assert (block.type, block.text) == ("text", "abc")
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    assert message.usage.output_tokens == 4
    assert message.id.startswith("msg_")


def test_the_path_is_there_without_its_prefix_too(server: Any) -> None:
    body = {"model": "echo", "max_tokens": 9, "temperature": 0, "messages": [{"role": "user", "content": "abc"}]}
    answer = server.client.post("/messages", json=body).json()
    assert answer["content"] == [{"type": "text", "text": "abc"}]


def test_thinking_is_a_signed_block_that_can_be_sent_back(v31: Any) -> None:
    message = create(v31, "abc</think>def", thinking=ON)
    thinking, text = message.content
    assert (thinking.thinking, text.text) == ("abc", "def")
    assert thinking.signature
    assert message.usage.output_tokens_details.thinking_tokens == 4
    history = [*QUESTION, {"role": "assistant", "content": message.content}, *QUESTION]
    assert create(v31, "x", messages=history).content[0].text == "x"


def test_nothing_is_thought_when_thinking_is_off(v31: Any) -> None:
    assert [block.type for block in create(v31, "x", thinking={"type": "disabled"}).content] == ["text"]


def test_calls_are_blocks_with_their_input(v31: Any) -> None:
    message = create(v31, f"Let me see.{TWO_CALLS}", tools=TOOLS)
    text, weather, clock = message.content
    assert (text.text, message.stop_reason) == ("Let me see.", "tool_use")
    assert [(call.name, call.input) for call in (weather, clock)] == [("weather", {"city": "Ulm"}), ("clock", {})]
    assert weather.id != clock.id


def test_a_call_that_is_cut_shows_what_is_complete_of_it(v31: Any) -> None:
    started = f'{BEGIN}{CALL}clock{SEP}{{"a": [1, 2], "b": "some'
    message = create(
        v31, f'{started}thing"}}{CALL_END}{END}', tools=TOOLS, max_tokens=len(v31.tokenizer.encode(started))
    )
    assert message.stop_reason == "max_tokens"
    assert message.content[-1].input == {"a": [1, 2]}


CHOICES: list[tuple[dict[str, Any], set[str]]] = [
    ({"type": "tool", "name": "weather"}, {"weather"}),
    ({"type": "any"}, {"weather", "clock"}),
    ({"type": "any", "disable_parallel_tool_use": True}, {"weather", "clock"}),
]


@pytest.mark.parametrize(("choice", "names"), CHOICES)
def test_a_tool_is_called_where_the_choice_says_so(v31: Any, choice: dict[str, Any], names: set[str]) -> None:
    message = create(v31, "no!", tools=TOOLS[:1] if choice["type"] == "any" else TOOLS, tool_choice=choice)
    assert {block.name for block in message.content if block.type == "tool_use"} <= names
    assert message.content[0].type == "tool_use"
    if choice.get("disable_parallel_tool_use"):
        assert len(message.content) == 1


def test_no_tool_is_called_where_the_choice_forbids_it(v31: Any) -> None:
    message = create(v31, "yes", tools=TOOLS, tool_choice={"type": "none"})
    assert [block.type for block in message.content] == ["text"]


@pytest.mark.parametrize(("stops", "text", "found"), [(["."], "ab", "."), (["x", "d.e", "e"], "ab.c", "d.e")])
def test_a_stop_sequence_ends_the_answer_and_is_named(v31: Any, stops: list[str], text: str, found: str) -> None:
    message = create(v31, "ab.cd.ef", stop_sequences=stops)
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == (text, "stop_sequence", found)


def test_an_answer_that_is_cut_says_so(v31: Any) -> None:
    message = create(v31, "abcdef", max_tokens=3)
    assert (message.content[0].text, message.stop_reason) == ("abc", "max_tokens")


def test_the_assistants_last_message_is_continued(v31: Any) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "I say"}]
    assert create(v31, " so", messages=messages).content[0].text == " so"
    counted = v31.anthropic.messages.count_tokens(model="echo", messages=messages).input_tokens
    body = {"model": "echo", "messages": messages, "continue_final_message": True, "max_tokens": 1}
    assert v31.client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] == counted


class Weather(BaseModel):
    city: Literal["Ulm", "Rom"]
    days: int


def test_the_client_parses_what_a_schema_enforces(v31: Any) -> None:
    v31.executor.say('{"city": "Ulm", "days": 3}')
    message = v31.anthropic.messages.parse(model="echo", max_tokens=60, messages=QUESTION, output_format=Weather)
    assert message.parsed_output == Weather(city="Ulm", days=3)


def test_a_schema_holds_against_the_models_will(v31: Any) -> None:
    form = {"format": {"type": "json_schema", "schema": CITY}}
    message = create(v31, "no!", output_config=form)
    assert json.loads(message.content[0].text)["city"] in ("Ulm", "Rom")


def test_blocks_make_the_conversation_that_messages_make(v31: Any) -> None:
    """Counted rather than read: the same prompt has the same number of tokens."""
    blocks: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "long " * 9, "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Wait."},
                {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Ulm"}},
                {"type": "tool_use", "id": "2", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "2", "content": "late", "is_error": True},
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "sun"}]},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    calls = [
        {"id": "1", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}},
        {"id": "2", "function": {"name": "clock", "arguments": "{}"}},
    ]
    messages = [
        {"role": "system", "content": "One.\n\nTwo."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        {"role": "tool", "tool_call_id": "2", "content": "error: late"},
        {"role": "user", "content": "So?"},
    ]
    system: Any = [
        {"type": "text", "text": "One.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Two."},
    ]
    fields = {"model": "echo", "messages": blocks, "system": system, "tools": TOOLS[1:]}
    function = {"name": "clock", "parameters": {"type": "object"}}
    chat = {"model": "echo", "messages": messages, "tools": [{"type": "function", "function": function}]}
    counted = v31.anthropic.messages.count_tokens(**fields).input_tokens
    assert counted == v31.client.post("/tokenize", json=chat).json()["count"]
    usage = create(v31, "x", **fields).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted


def test_tokens_of_the_cache_are_told_apart(server: Any) -> None:
    with client_of(server) as client:
        fields: Any = {"model": "echo", "max_tokens": 1, "messages": [{"role": "user", "content": "a" * 60}]}
        first, second = (client.messages.create(**fields).usage for _ in range(2))
        with client.messages.stream(**fields) as stream:
            streamed = stream.get_final_message().usage
    assert first.cache_read_input_tokens == 0
    assert second.cache_read_input_tokens >= 48
    assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens
    assert streamed.cache_read_input_tokens == second.cache_read_input_tokens


IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens: Field required"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'image'"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "x"}]}]}, "has no place"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [IMAGE]}]}]},
        "'image'",
    ),
    ({"system": [IMAGE]}, "system: content block 0 is of type 'image', only 'text' can be used here"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tool 0 is of type 'bash_20250124', only 'custom'"),
    ({"tool_choice": {"type": "tool"}, "tools": TOOLS}, "tool_choice: type 'tool' needs the name"),
    ({"tool_choice": {"type": "tool", "name": "x"}, "tools": TOOLS}, "'x'"),
    ({"tool_choice": {"type": "any"}}, "needs tools"),
    ({"temperature": 1.5}, "temperature"),
    ({"stop_sequences": [""]}, "stop_sequences.0"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 100}},
        "thinking.budget_tokens 100 must be less than max_tokens",
    ),
    ({"mcp_servers": [{"type": "url", "url": "x", "name": "y"}]}, "mcp_servers: this server calls no other"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "output_config.format: "),
    ({"messages": [{"role": "user", "content": "a" * 3000}]}, "the prompt has"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(v31: Any, fields: dict[str, Any], words: str) -> None:
    body = {"model": "echo", "messages": QUESTION, "max_tokens": 100, **fields}
    response = v31.client.post("/v1/messages", json=body)
    error = response.json()
    assert response.status_code == 400, error
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert words in error["error"]["message"]
    assert error["request_id"] == response.headers["x-request-id"]


def test_errors_have_anthropics_form_under_these_paths_only(make_server: Callable[..., Any], tmp_path: Any) -> None:
    (tmp_path / "key").write_text("secret")
    server = make_server(api_key_folder=tmp_path)
    server.open()
    fields: Any = {"model": "other", "max_tokens": 1, "messages": QUESTION}
    with client_of(server, api_key="wrong") as client, pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.create(**fields)
    assert caught.value.type == "authentication_error"
    with client_of(server, api_key="secret") as client:
        with pytest.raises(anthropic.NotFoundError, match="model 'other' is not served here"):
            client.messages.create(**fields)
        assert client.messages.create(**{**fields, "model": "echo"}).stop_reason
    header = {"x-api-key": "secret"}
    wrong_verb = server.client.get("/v1/messages", headers=header)
    assert (wrong_verb.status_code, wrong_verb.json()["type"]) == (405, "error")
    broken = server.client.post("/messages/count_tokens", content=b"{", headers=header)
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    elsewhere = server.client.post("/v1/responses", content=b"{", headers=header)
    assert set(elsewhere.json()) == {"error"}


def test_a_server_that_is_not_ready_is_overloaded(make_server: Callable[..., Any]) -> None:
    response = make_server().client.post("/v1/messages", json={})
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["type"] == "overloaded_error"
