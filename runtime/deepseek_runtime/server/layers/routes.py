"""The routes of this layer: each API answers, and counts the tokens of a prompt without answering."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from deepseek_runtime.server.generation import Generation
from deepseek_runtime.server.layers.bodies import LayerBody
from deepseek_runtime.server.layers.delivery import Delivery, Fields, Writer
from deepseek_runtime.server.layers.messages_body import CountBody, MessagesBody
from deepseek_runtime.server.layers.messages_events import MessagesWriter
from deepseek_runtime.server.layers.responses_body import ResponsesBody
from deepseek_runtime.server.layers.responses_events import ResponsesWriter
from deepseek_runtime.server.requests import TIMEOUT_HEADER, chat_job, encode_chat, read_body, with_timeout
from deepseek_runtime.server.responses import json_response, until_gone
from deepseek_runtime.server.service import ServerState, Service

Endpoint = Callable[[Request], Awaitable[Response]]
AnyBody = TypeVar("AnyBody", bound=LayerBody)


@dataclass(frozen=True, slots=True)
class Api(Generic[AnyBody]):
    """What is an API's own. `countable` is the body of a request to count."""

    body: type[AnyBody]
    countable: type[LayerBody]
    writer: Callable[[AnyBody], Writer]
    counted: Fields


RESPONSES = Api(ResponsesBody, ResponsesBody, ResponsesWriter, {"object": "response.input_tokens"})
MESSAGES = Api(MessagesBody, CountBody, MessagesWriter, {})


class Layer(Generic[AnyBody]):
    """The endpoints of one API, over one server's state."""

    def __init__(self, state: ServerState, api: Api[AnyBody]) -> None:
        self._state = state
        self._api = api

    async def answer(self, request: Request) -> Response:
        service = self._state.open()
        body = await read_body(request, self._api.body)
        self._check(body)
        return await until_gone(request, self._work(request, service, body))

    async def count(self, request: Request) -> Response:
        service = self._state.open()
        body = await read_body(request, self._api.countable)
        self._check(body)
        chat = body.to_chat()
        with body.complaints():
            prompt = await run_in_threadpool(encode_chat, service, chat)
        return json_response(self._api.counted | {"input_tokens": len(prompt.ids)})

    async def _work(self, request: Request, service: Service, body: AnyBody) -> Response:
        chat = body.to_chat()
        with body.complaints():
            job = with_timeout(await chat_job(service, chat), request.headers.get(TIMEOUT_HEADER))
            generation = Generation(self._state, service, job)
        return await Delivery(self._api.writer(body), generation).respond(stream=body.stream)

    def _check(self, body: LayerBody) -> None:
        self._state.check_model(body.model)
        self._state.note_unknown(body.unknown_fields)


def layer_routes(state: ServerState) -> dict[str, tuple[str, Endpoint]]:
    """Method and endpoint of each path, without `/v1`."""
    responses, messages = Layer(state, RESPONSES), Layer(state, MESSAGES)
    return {
        "/responses": ("POST", responses.answer),
        "/responses/input_tokens": ("POST", responses.count),
        "/messages": ("POST", messages.answer),
        "/messages/count_tokens": ("POST", messages.count),
    }
