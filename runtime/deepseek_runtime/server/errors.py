"""One error path: every failure that a client sees is an `ApiError`, in the envelope of the API that it speaks."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_runtime.server import access_log
from deepseek_runtime.server.layers import envelope as anthropic

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = {
    "queue_full": 1,
    "too_many_requests": 1,
    "too_many_connections": 5,
    "loading": 5,
    "draining": 1,
    "group_broken": 30,
    "stalled": 30,
}


LAST_WORDS = frozenset({"draining", "group_broken"})


class ApiError(Exception):
    """An answer other than 200. `param` names the field at fault; `code` is for programs, the message for people."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, type_: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type_ or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")

    @property
    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The body: `{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The envelope as a response; the access log learns of it."""
        access_log.current().cause = self.code or self.type
        return Response(self.body, self.status, self.headers, media_type="application/json")

    @property
    def body(self) -> bytes:
        """The error in the form of the API under whose path the request came."""
        request = access_log.current()
        if anthropic.speaks_at(request.path):
            return orjson.dumps(anthropic.envelope(self.status, self.message, request.id))
        return orjson.dumps(self.envelope)

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After where a retry may help, and how to prove who one is where that was missing.

        `Connection: close` goes with what a server says at its end: over a connection that is kept alive, a retry would
        not reach another server but this one again.
        """
        seconds = RETRY_AFTER_SECONDS.get(self.code or "")
        retry = {} if seconds is None else {"Retry-After": str(seconds)}
        leave = {"Connection": "close"} if self.code in LAST_WORDS else {}
        return retry | leave | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


def unavailable(code: str, message: str) -> ApiError:
    """429 for a full queue, 503 for everything else that passes: the client should try again."""
    return ApiError(429 if code == "queue_full" else 503, message, code=code)


def from_validation(error: ValidationError) -> ApiError:
    """The first complaint about a body, as a sentence that names the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{field}: {message}" if field else message, param=field)


async def on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the envelope."""
    assert isinstance(error, HTTPException)
    message = _HTTP_MESSAGES.get(error.status_code, "{detail}")
    text = message.format(method=request.method, path=request.url.path, detail=error.detail)
    response = ApiError(error.status_code, text).response()
    headers: Mapping[str, str] = error.headers or {}
    response.headers.update(headers)
    return response


_HTTP_MESSAGES = {
    404: "there is nothing at {path}; see GET /v1/models and POST /v1/chat/completions",
    405: "{path} does not take {method}",
}


async def on_disconnect(_: Request, __: Exception) -> Response:
    """The client left before its request was whole; nobody reads this."""
    return Response(status_code=access_log.CLIENT_GONE)


class CrashGuard:
    """Middleware that turns a bug of ours into an answer: the log has the traceback, the client a sentence."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            logger.exception("request %s failed", access_log.current().id)
            if begun:  # the connection is cut, which is the only way left to say that something is wrong
                raise
            error = ApiError(500, "the server failed on this request; its log has the details", code="internal_error")
            await error.response()(scope, receive, send)
