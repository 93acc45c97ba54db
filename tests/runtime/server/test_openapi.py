"""The OpenAPI document: valid, complete, and true to what the server takes."""

from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from deepseek_runtime.server.auth import PROBE_PATHS
from deepseek_runtime.server.openapi import OPERATIONS
from deepseek_runtime.server.page import PATHS as PAGE_PATHS


@pytest.fixture(scope="module")
def document(shared_server: Any) -> dict[str, Any]:
    response = shared_server.client.get("/openapi.json")
    assert response.status_code == 200
    made: dict[str, Any] = response.json()
    return made


def body_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return {**content["application/json"]["schema"], "components": document["components"]}


def test_every_route_but_the_page_is_described(shared_server: Any, document: dict[str, Any]) -> None:
    routes = [route for route in shared_server.http.app.routes if isinstance(route, Route)]
    expected = {
        (route.path.replace(":path", ""), method.lower())
        for route in routes
        if route.path not in PAGE_PATHS
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described == expected
    assert {path.removeprefix("/v1") for path, _ in described} == set(OPERATIONS)
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_every_error_has_the_one_envelope_of_its_api(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        name = "MessagesError" if "/messages" in path else "Error"
        for operation in item.values():
            for status, response in operation["responses"].items():
                if status >= "400" and not (status == "503" and path in PROBE_PATHS):
                    schemas = [content.get("schema") for content in response["content"].values()]
                    assert schemas == [{"$ref": f"#/components/schemas/{name}"}], (path, status)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stop": "x", "tool_choice": "none"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": None}], "stop": ["x", "y"]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/completions", {"prompt": [5, 6]}),
        ("/completions", {"prompt": [[5], [6]]}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 1}),
        ("/v1/responses", {"input": [{"role": "user", "content": "a"}], "text": {"format": {"type": "text"}}}),
        ("/responses/input_tokens", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "system": "b"}),
        ("/messages/count_tokens", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [5, 6]}),
    ],
)
def test_what_the_server_takes_is_valid_by_the_document(
    shared_server: Any, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    body = {"model": "echo", "max_tokens": 1, **body}
    jsonschema.Draft202012Validator(body_schema(document, path)).validate(body)
    assert shared_server.client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "echo", "messages": []}),
        ("/v1/chat/completions", {"model": "other", "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"model": "echo", "prompt": 5}),
        ("/v1/responses", {"model": "echo", "input": []}),
        ("/v1/messages", {"model": "echo", "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"model": "echo", "prompt": "a", "stop": ["x"] * 17}),
        ("/v1/completions", {"model": "echo", "prompt": "a", "temperature": 2.5}),
    ],
)
def test_what_the_document_forbids_is_refused(
    shared_server: Any, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    assert not jsonschema.Draft202012Validator(body_schema(document, path)).is_valid(body)
    assert shared_server.client.post(path, json=body).status_code in (400, 404)
