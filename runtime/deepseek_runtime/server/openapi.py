"""The API as an OpenAPI 3.1 document, made from the routes that there are and the schemas that judge their bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepseek_runtime.server.access_log import ID_HEADER
from deepseek_runtime.server.auth import METRICS_PATHS, PROBE_PATHS
from deepseek_runtime.server.layers import envelope as anthropic
from deepseek_runtime.server.layers.messages_body import CountBody, MessagesBody
from deepseek_runtime.server.layers.responses_body import ResponsesBody
from deepseek_runtime.server.requests import TIMEOUT_HEADER
from deepseek_runtime.server.schemas import AbortBody, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from deepseek_runtime.settings import package_version

PATH = "/openapi.json"


@dataclass(frozen=True, slots=True)
class Operation:
    """What a path does. With `generates` the answer may be a stream of events, and may take longer than allowed."""

    summary: str
    body: type[BaseModel] | None = None
    generates: bool = False
    media: str = "application/json"


OPERATIONS = {
    "/chat/completions": Operation("Answer a conversation", ChatBody, generates=True),
    "/completions": Operation("Continue one text or several", CompletionBody, generates=True),
    "/models": Operation("The models that are served, and what they can do"),
    "/models/{name}": Operation("One model"),
    "/abort": Operation("End the requests of an id", AbortBody),
    "/tokenize": Operation("Token ids of a text or of a conversation", TokenizeBody),
    "/detokenize": Operation("The text of token ids", DetokenizeBody),
    "/responses": Operation("Answer as OpenAI's Responses API does", ResponsesBody, generates=True),
    "/responses/input_tokens": Operation("Count the tokens of a request to it", ResponsesBody),
    "/messages": Operation("Answer as Anthropic's Messages API does", MessagesBody, generates=True),
    "/messages/count_tokens": Operation("Count the tokens of a request to it", CountBody),
    "/version": Operation("The server's version"),
    "/health": Operation("Whether the process is worth keeping"),
    "/livez": Operation("Whether the process is worth keeping"),
    "/readyz": Operation("Whether new requests are welcome"),
    "/startupz": Operation("Whether the model is loaded, and how much of it"),
    "/metrics": Operation("Figures in Prometheus' text format", media="text/plain"),
    PATH: Operation("This document"),
}
"""By path, without the `/v1` that all but probes, metrics and this document have also."""

_ALWAYS = (400, 401, 405, 429, 431, 500)
_WITH_MODEL = (404, 503)
_WITH_BODY = (408, 413)
_PARAMETER = re.compile(r"{(\w+)(:\w+)?}")


def route(routes: Iterable[Route], names: Sequence[str]) -> Route:
    """The route of the document about `routes` and itself, for a server of the models `names`."""

    async def endpoint(_: Request) -> Response:
        return Response(content, media_type="application/json")

    own = Route(PATH, endpoint)
    content = orjson.dumps(document([*routes, own], names))
    return own


def document(routes: Iterable[Route], names: Sequence[str]) -> dict[str, Any]:
    """The document about these routes, for a server of the models `names`."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(path, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "DeepSeek-V3 runtime", "version": package_version()},
        "paths": paths,
        "components": {
            "schemas": {**_schemas(names), "Error": ERROR, "MessagesError": anthropic.SCHEMA},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }


ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string", "minLength": 1},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}
"""The envelope of all errors, but for those of Anthropic's API."""


def _schemas(names: Sequence[str]) -> dict[str, Any]:
    """The bodies that there are, and what they consist of. Of models they may name those that are served."""
    bodies = [operation.body for operation in OPERATIONS.values() if operation.body]
    _, made = models_json_schema([(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = made["$defs"]
    for body in bodies:
        schemas[body.__name__]["properties"]["model"] = {"enum": [*names]}
    return schemas


def _operation(path: str, method: str) -> dict[str, Any]:
    operation = OPERATIONS.get(path.removeprefix("/v1"), Operation(path))
    described: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "summary": operation.summary,
        "parameters": list(_parameters(path, operation)),
        "responses": _responses(path, operation),
    }
    if operation.body:
        schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _parameters(path: str, operation: Operation) -> Iterable[dict[str, Any]]:
    for name, _ in _PARAMETER.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    yield {"name": ID_HEADER, "in": "header", "schema": {"type": "string"}}
    if operation.generates:
        yield {"name": TIMEOUT_HEADER, "in": "header", "schema": {"type": "number", "exclusiveMinimum": 0}}


def _responses(path: str, operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media: {}}
    if operation.generates:
        content["text/event-stream"] = {}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
    if path in PROBE_PATHS:
        responses["503"] = {"description": "No", "content": {"application/json": {}}}
    errors = [*_ALWAYS]
    if path not in PROBE_PATHS | METRICS_PATHS:
        errors += [*_WITH_MODEL, *(_WITH_BODY if operation.body else ()), *((504,) if operation.generates else ())]
    schema = "MessagesError" if anthropic.speaks_at(path) else "Error"
    envelope = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return responses | {
        str(status): {"description": HTTPStatus(status).phrase, "content": envelope} for status in sorted(errors)
    }
