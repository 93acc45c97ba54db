"""Answers that must have a form, JSON or JSON of a schema, behind reasoning too, whatever the model would like."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Rom"]}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
JSON_OBJECT = {"type": "json_object"}


def json_schema(schema: Any, *, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": strict, "schema": schema}}


@pytest.fixture
def v31(release_server: Callable[[str], Any]) -> Any:
    return release_server("v3.1")


def ask(server: Any, script: str, **extra: Any) -> Any:
    server.executor.say(script)
    body = {"model": "echo", "messages": [{"role": "user", "content": "?"}], "temperature": 0, **extra}
    return server.client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("thinking", ["disabled", "enabled"])
@pytest.mark.parametrize("script", ["I would rather not.", '{"city": "Ulm", "sunny": true}', "{}", '{"city": "Par'])
def test_an_answer_has_the_schemas_form_whatever_the_model_wants(v31: Any, script: str, thinking: str) -> None:
    thought = "hm</think>" if thinking == "enabled" else ""
    extra = {"response_format": json_schema(SCHEMA), "thinking": {"type": thinking}, "n": 2}
    for choice in ask(v31, thought + script, **extra).json()["choices"]:
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
        assert choice["finish_reason"] == "stop"
        assert choice["message"].get("reasoning_content", "") == thought.removesuffix("</think>")


def test_any_object_will_do_for_json_object(v31: Any) -> None:
    said = '{"a": [1, null, {"b": "ü"}]}'
    assert ask(v31, said, response_format=JSON_OBJECT).json()["choices"][0]["message"]["content"] == said
    forced = ask(v31, "}", response_format=JSON_OBJECT, max_tokens=100).json()["choices"][0]["message"]["content"]
    assert forced.startswith("{")


def test_text_is_not_constrained(v31: Any) -> None:
    assert ask(v31, "No.", response_format={"type": "text"}).json()["choices"][0]["message"]["content"] == "No."


def test_a_schema_beside_json_object_is_honoured(v31: Any) -> None:
    answer = ask(v31, "No.", response_format={**JSON_OBJECT, "schema": SCHEMA}).json()
    jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), SCHEMA)


def test_plain_completions_can_have_a_form_too(v31: Any) -> None:
    v31.executor.say("No.")
    body = {"model": "echo", "prompt": "?", "temperature": 0, "response_format": json_schema(SCHEMA)}
    jsonschema.validate(json.loads(v31.client.post("/v1/completions", json=body).json()["choices"][0]["text"]), SCHEMA)


def test_a_keyword_that_cannot_be_enforced_is_named_when_strict(v31: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    response = ask(v31, "", response_format=json_schema(schema))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "response_format", None)
    assert "'uniqueItems'" in error["message"]
    assert ask(v31, "{}", response_format=json_schema(schema, strict=False)).status_code == 200


def test_one_answers_form_is_not_the_nexts(v31: Any) -> None:
    ask(v31, "{", response_format=JSON_OBJECT, max_tokens=1)
    assert ask(v31, "Free again.").json()["choices"][0]["message"]["content"] == "Free again."
