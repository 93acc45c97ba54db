"""The Responses API as OpenAI's own client reads it, whole and in events."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Rom"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "name": "weather", "description": "?", "parameters": CITY, "strict": True},
    {"type": "function", "name": "clock", "parameters": None, "strict": False},
]
BEGIN, END, CALL, CALL_END, SEP = (
    f"<｜tool▁{mark}｜>" for mark in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
)
TWO_CALLS = f'{BEGIN}{CALL}weather{SEP}{{"city": "Ulm"}}{CALL_END}{CALL}clock{SEP}{{}}{CALL_END}{END}'


@pytest.fixture
def v31(release_server: Callable[[str], Any]) -> Any:
    return release_server("v3.1")


def create(server: Any, script: str, **fields: Any) -> Any:
    """The response to a scripted answer, after it was seen to be the same whole and streamed."""
    server.executor.say(script)
    fields = {"model": "echo", "input": "?", "temperature": 0, **fields}
    whole = server.openai.responses.create(**fields)
    events = list(server.openai.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == f"response.{whole.status}"
    assert neutral(events[-1].response) == neutral(whole) == neutral(rebuilt(events))
    return whole


def rebuilt(events: list[Any]) -> dict[str, Any]:
    """The response as a client puts it together that trusts in deltas alone."""
    response: dict[str, Any] = events[-1].response.model_dump(mode="json")
    response["output"] = [item.model_dump(mode="json") for item in items(events)]
    return response


def items(events: list[Any]) -> Iterator[Any]:
    """Items as deltas make them, checked against every `done` event."""
    item: Any = None
    for event in events:
        match event.type:
            case "response.output_item.added":
                assert item is None
                item = event.item
            case "response.content_part.added":
                item.content.append(event.part)
            case "response.output_text.delta" | "response.reasoning_text.delta":
                item.content[event.content_index].text += event.delta
            case "response.output_text.done" | "response.reasoning_text.done":
                assert item.content[event.content_index].text == event.text
            case "response.function_call_arguments.delta":
                item.arguments += event.delta
            case "response.function_call_arguments.done":
                assert item.arguments == event.arguments
            case "response.content_part.done":
                assert item.content[event.content_index].to_dict() == event.part.to_dict()
            case "response.output_item.done":
                item.status = event.item.status
                assert item.to_dict() == event.item.to_dict()
                yield item
                item = None


def neutral(response: Any) -> dict[str, Any]:
    """A response without what differs between two answers to one request."""
    plain = response if isinstance(response, dict) else response.model_dump(mode="json")
    without = {"id", "call_id", "created_at", "completed_at", "cached_tokens"}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items() if key not in without}
        return [clean(item) for item in value] if isinstance(value, list) else value

    cleaned: dict[str, Any] = clean(plain)
    return cleaned


def test_a_text_is_answered_with_a_text(server: Any) -> None:
    response = server.openai.responses.create(model="echo", input="abc", temperature=0)
    assert (response.output_text, response.status, response.model) == ("abc", "completed", "echo")
    assert response.usage.input_tokens + response.usage.output_tokens == response.usage.total_tokens
    assert response.usage.output_tokens == 4
    assert response.completed_at >= response.created_at
    assert response.id.startswith("resp_")


def test_the_path_is_there_without_its_prefix_too(server: Any) -> None:
    answer = server.client.post("/responses", json={"model": "echo", "input": "abc", "temperature": 0}).json()
    assert answer["output"][0]["content"][0]["text"] == "abc"
    assert (answer["store"], answer["previous_response_id"], answer["error"]) == (False, None, None)


def test_reasoning_is_an_item_of_its_own(v31: Any) -> None:
    response = create(v31, "abc</think>def", reasoning={"effort": "high"})
    reasoning, message = response.output
    assert ([part.text for part in reasoning.content], reasoning.summary) == (["abc"], [])
    assert message.content[0].text == response.output_text == "def"
    assert response.usage.output_tokens_details.reasoning_tokens == 4
    assert response.reasoning.effort == "high"


def test_an_effort_of_none_switches_reasoning_off(v31: Any) -> None:
    response = create(v31, "def", reasoning={"effort": "none"})
    assert [item.type for item in response.output] == ["message"]


def test_calls_are_items_with_their_arguments(v31: Any) -> None:
    response = create(v31, f"Let me see.{TWO_CALLS}", tools=TOOLS)
    message, weather, clock = response.output
    assert message.content[0].text == "Let me see."
    assert [(call.name, json.loads(call.arguments)) for call in (weather, clock)] == [
        ("weather", {"city": "Ulm"}),
        ("clock", {}),
    ]
    assert len({weather.call_id, clock.call_id, weather.id, clock.id}) == 4
    assert [tool.name for tool in response.tools] == ["weather", "clock"]


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    ],
)
def test_a_chosen_tool_is_called_whatever_the_model_would_rather_do(v31: Any, choice: Any) -> None:
    response = create(v31, "no!", tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_output_tokens=60)
    [call] = response.output
    assert (call.name, json.loads(call.arguments)["city"] in ("Ulm", "Rom")) == ("weather", True)
    assert response.tool_choice.type == choice["type"]


def test_an_answer_that_is_cut_is_incomplete_and_says_why(v31: Any) -> None:
    response = create(v31, "abcdef", max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output_text, response.output[-1].status) == ("abc", "incomplete")
    assert response.completed_at is None


def test_an_answer_of_nothing_has_an_empty_text(v31: Any) -> None:
    response = create(v31, "")
    assert (response.status, response.output_text, len(response.output)) == ("completed", "", 1)


def test_stop_and_other_fields_of_chat_requests_mean_what_they_mean_there(v31: Any) -> None:
    assert create(v31, "ab.cd", extra_body={"stop": "."}).output_text == "ab"
    v31.executor.say("x")
    body = {"model": "echo", "input": "?", "stop": [""]}
    error = v31.client.post("/v1/responses", json=body).json()["error"]
    assert (error["param"], error["type"]) == ("stop.0", "invalid_request_error")


class Weather(BaseModel):
    city: Literal["Ulm", "Rom"]
    days: int


def test_the_client_parses_what_a_schema_enforces(v31: Any) -> None:
    v31.executor.say('{"city": "Ulm", "days": 3}')
    response = v31.openai.responses.parse(model="echo", input="?", temperature=0, text_format=Weather)
    assert response.output_parsed == Weather(city="Ulm", days=3)
    assert (response.text.format.type, response.text.format.strict) == ("json_schema", True)


def test_a_schema_holds_against_the_models_will(v31: Any) -> None:
    form: Any = {"type": "json_schema", "name": "x", "schema": CITY, "strict": True}
    response = create(v31, "no!", text={"format": form}, max_output_tokens=60)
    assert json.loads(response.output_text)["city"] in ("Ulm", "Rom")
    assert response.text.format.schema_ == CITY
    plain = create(v31, "no!", text={"format": {"type": "json_object"}}, max_output_tokens=60)
    assert isinstance(json.loads(plain.output_text), dict)


def test_the_clients_stream_helper_follows_text_and_calls(v31: Any) -> None:
    v31.executor.say(f"Hm.{TWO_CALLS}")
    with v31.openai.responses.stream(model="echo", input="?", temperature=0, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "Hm."
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]
    assert kinds.count("response.function_call_arguments.done") == 2


def prompt_of(server: Any, path: str, **fields: Any) -> int:
    response = server.client.post(path, json={"model": "echo", **fields})
    assert response.status_code == 200, response.text
    body = response.json()
    count: int = body.get("input_tokens", body.get("count"))
    return count


def test_items_make_the_conversation_that_messages_make(v31: Any) -> None:
    """Counted rather than read: the same prompt has the same number of tokens."""
    items = [
        {"role": "user", "content": "Weather?"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "long " * 9}],
        },
        {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "1", "name": "weather", "arguments": '{"city": "Ulm"}'},
        {"type": "function_call", "call_id": "2", "name": "clock", "arguments": "{}", "status": None},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "function_call_output", "call_id": "1", "output": "sun"},
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "Be "}, {"type": "input_text", "text": "kind."}],
        },
    ]
    calls = [
        {"id": "1", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}},
        {"id": "2", "function": {"name": "clock", "arguments": "{}"}},
    ]
    messages = [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        {"role": "tool", "tool_call_id": "2", "content": "noon"},
        {"role": "system", "content": "Be kind."},
    ]
    tools = [{"type": "function", "function": {"name": "clock", "description": "?"}}]
    flat = [{"type": "function", "name": "clock", "description": "?"}]
    counted = prompt_of(v31, "/v1/responses/input_tokens", input=items, instructions="Rules.", tools=flat)
    assert counted == prompt_of(v31, "/tokenize", messages=messages, tools=tools)
    v31.executor.say("x")
    usage = v31.openai.responses.create(model="echo", input=items, instructions="Rules.", tools=flat).usage
    assert usage.input_tokens == counted
    sdk = v31.openai.responses.input_tokens.count(model="echo", input=items, instructions="Rules.", tools=flat)
    assert sdk.input_tokens == counted


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored here"),
    ({"conversation": "conv_1"}, "conversation", "nothing is stored here"),
    ({"background": True}, "background", "nothing is stored here"),
    ({"prompt": {"id": "p"}}, "prompt", "nothing is stored here"),
    ({"tools": [TOOLS[0], {"type": "web_search"}]}, "tools", "tool 1 is of type 'web_search', only 'function'"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice", "'file_search'"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"input": []}, "input", "at least 1"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "item 0 is of type 'item_reference'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "'input_image'"),
    ({"input": [{"type": "function_call", "name": "x"}]}, "input", "call_id"),
    ({"truncation": "auto"}, "truncation", "never shortened"),
    ({"top_logprobs": 2}, "top_logprobs", "chat completions"),
    ({"include": ["message.output_text.logprobs"]}, "include", "chat completions"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text", "schema"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": {"not": {}}}}}, "text", "not"),
    ({"max_output_tokens": 0}, "max_output_tokens", "1"),
    ({"input": "a" * 3000}, "input", "the prompt has"),
]


@pytest.mark.parametrize(("fields", "field", "words"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(v31: Any, fields: dict[str, Any], field: str, words: str) -> None:
    response = v31.client.post("/v1/responses", json={"model": "echo", "input": "?", **fields})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["param"] or error["message"]).split(".")[0].startswith(field), error
    assert words in error["message"]


def test_fields_of_other_servers_and_for_statistics_change_nothing(server: Any) -> None:
    fields = {"store": True, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "include": [], "x": 1}
    fields |= {"truncation": "disabled", "prompt_cache_key": "k", "reasoning": {"summary": "auto"}}
    response = server.openai.responses.create(model="echo", input="abc", temperature=0, extra_body=fields)
    assert (response.output_text, response.metadata) == ("abc", {"a": "b"})


def test_an_unknown_model_is_404(server: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served here"):
        server.openai.responses.create(model="other", input="abc")
