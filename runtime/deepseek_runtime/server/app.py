"""Routes, each under `/v1` and without it, and what wraps all of them."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from deepseek_runtime.health import Verdict
from deepseek_runtime.server import errors, exposition, openapi
from deepseek_runtime.server.choices import Answer
from deepseek_runtime.server.errors import ApiError
from deepseek_runtime.server.generation import Generation, Job
from deepseek_runtime.server.layers.routes import layer_routes
from deepseek_runtime.server.middleware import Policy, middleware
from deepseek_runtime.server.page import page_routes
from deepseek_runtime.server.requests import (
    TIMEOUT_HEADER,
    chat_job,
    check_ids,
    completion_job,
    echoes,
    encode_messages,
    encode_text,
    read_body,
    with_timeout,
)
from deepseek_runtime.server.responses import json_response, until_gone
from deepseek_runtime.server.schemas import (
    AbortBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    TokenizeBody,
)
from deepseek_runtime.server.service import ServerState, Service, model_details
from deepseek_runtime.server.shapes import Calling, ChatShape, CompletionShape, Shape
from deepseek_runtime.settings import package_version

AnyBody = TypeVar("AnyBody", bound=GenerationBody)
Endpoint = Callable[[Request], Awaitable[Response]]


def build_app(state: ServerState, policy: Policy | None = None) -> Starlette:
    """The ASGI application over a server's state, for clients as the policy has them."""
    policy = policy or Policy()
    routes = Routes(state)
    table: dict[str, tuple[str, Endpoint]] = {
        "/chat/completions": ("POST", routes.chat),
        "/completions": ("POST", routes.completions),
        "/models": ("GET", routes.models),
        "/models/{name:path}": ("GET", routes.model),
        "/abort": ("POST", routes.abort),
        "/tokenize": ("POST", routes.tokenize),
        "/detokenize": ("POST", routes.detokenize),
        "/version": ("GET", routes.version),
        **layer_routes(state),
    }
    plain: dict[str, Endpoint] = {
        "/health": routes.live,
        "/livez": routes.live,
        "/readyz": routes.ready,
        "/startupz": routes.started,
        "/metrics": routes.metrics,
    }
    api = [Route(prefix + path, end, methods=[verb]) for path, (verb, end) in table.items() for prefix in ("/v1", "")]
    api += [Route(path, end, methods=["GET"]) for path, end in plain.items()]
    return Starlette(
        routes=[*api, openapi.route(api, state.names), *(page_routes() if policy.chat_page else ())],
        middleware=middleware(policy, state.metrics),
        exception_handlers={
            errors.ApiError: errors.on_api_error,
            HTTPException: errors.on_http_error,
            ClientDisconnect: errors.on_disconnect,
        },
    )


class Routes:
    """The endpoints, over one server's state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def chat(self, request: Request) -> Response:
        service, body = await self._read(request, ChatBody)
        calling = Calling(named=body.tool_choice.mode == "named", legacy=body.legacy)
        shape = ChatShape(service.tokenizer, logprobs=body.wanted_logprobs is not None, calling=calling)
        return await self._answer(request, service, body, shape, chat_job(service, body))

    async def completions(self, request: Request) -> Response:
        service, body = await self._read(request, CompletionBody)
        logprobs = body.wanted_logprobs is not None
        shape = CompletionShape(service.tokenizer, logprobs=logprobs, echoes=echoes(service, body))
        return await self._answer(request, service, body, shape, completion_job(service, body))

    async def models(self, _: Request) -> Response:
        self._state.open()
        return json_response({"object": "list", "data": [self._card(name) for name in self._state.names]})

    async def model(self, request: Request) -> Response:
        self._state.open()
        name = request.path_params["name"]
        self._state.check_model(name)
        return json_response(self._card(name))

    async def abort(self, request: Request) -> Response:
        body = await read_body(request, AbortBody)
        generations = [one for one in self._state.generations if one.request_id == body.request_id]
        if not generations:
            raise ApiError(404, f"no request {body.request_id!r} is being answered", param="request_id")
        for generation in generations:
            generation.abort()
        return json_response({"request_id": body.request_id, "aborted": len(generations)})

    async def tokenize(self, request: Request) -> Response:
        service = self._state.open()
        body = await read_body(request, TokenizeBody)
        ids = await run_in_threadpool(_tokenize, service, body)
        return json_response({"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids})

    async def detokenize(self, request: Request) -> Response:
        service = self._state.open()
        body = await read_body(request, DetokenizeBody)
        check_ids(service, body.tokens, "tokens")
        return json_response({"prompt": service.tokenizer.decode(body.tokens)})

    async def version(self, _: Request) -> Response:
        return json_response({"version": package_version()})

    async def live(self, _: Request) -> Response:
        return _probe(self._state.health.live())

    async def started(self, _: Request) -> Response:
        return _probe(self._state.health.started())

    async def ready(self, _: Request) -> Response:
        return _probe(self._state.health.ready())

    async def metrics(self, _: Request) -> Response:
        return Response(self._state.metrics.render(), headers={"Content-Type": exposition.CONTENT_TYPE})

    async def _read(self, request: Request, schema: type[AnyBody]) -> tuple[Service, AnyBody]:
        """The service, if it takes requests now, and the body, if it is right and for a model that is served."""
        service = self._state.open()
        body = await read_body(request, schema)
        self._state.check_model(body.model)
        self._state.note_unknown(body.unknown_fields)
        return service, body

    async def _answer(
        self, request: Request, service: Service, body: GenerationBody, shape: Shape, coming: Coroutine[Any, Any, Job]
    ) -> Response:
        async def work() -> Response:
            job = with_timeout(await coming, request.headers.get(TIMEOUT_HEADER))
            generation = Generation(self._state, service, job)
            return await Answer(shape, body, generation, f"{shape.prefix}-{uuid.uuid4().hex}").respond()

        return await until_gone(request, work())

    def _card(self, name: str) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": self._state.created, "owned_by": "dsv3"}
        return card | model_details(self._state.open())


def _tokenize(service: Service, body: TokenizeBody) -> list[int]:
    if not body.messages:
        return encode_text(service, body.prompt or "", add_special_tokens=body.add_special_tokens)
    variables = body.chat_template_kwargs
    return list(encode_messages(service, body.messages, tools=body.tools, variables=variables).ids)


def _probe(verdict: Verdict) -> Response:
    return json_response(verdict.body, verdict.status)
