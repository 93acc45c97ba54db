"""One error path: every failure that a client sees is an `ApiError` in the OpenAI envelope."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = {"queue_full": 1, "loading": 5, "draining": 1, "group_broken": 30, "stalled": 30}


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
        """The envelope as a response, with Retry-After where a retry may help."""
        seconds = RETRY_AFTER_SECONDS.get(self.code or "")
        headers = {} if seconds is None else {"Retry-After": str(seconds)}
        return Response(orjson.dumps(self.envelope), self.status, headers, media_type="application/json")


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


async def on_crash(_: Request, error: Exception) -> Response:
    """A bug of ours: the log has the traceback, the client a sentence."""
    logger.error("request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log has the details").response()
