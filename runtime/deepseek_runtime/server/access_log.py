"""One JSON line for each request: who asked, what came of it and when. Never what was said.

A request's id and record go with its context, so that whoever works on it can add to them, and find the id to log.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

ID_HEADER = "X-Request-Id"
CLIENT_GONE = 499
"""Status of an answer that nobody waited for; it is in the log only."""

_SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_PATH_SHOWN = 200


@dataclass(slots=True)
class Record:
    """What is known of a request. Times are in seconds of the monotonic clock, `first_token` since the beginning.

    `cause` says why the answer is not what was asked for: an error's code, or what ended the answer early.
    """

    id: str = ""
    path: str = ""
    began: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    cause: str | None = None

    @property
    def age(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.began


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record:
    """The record of the request that this code works on; one that nobody reads where there is none."""
    return _current.get() or Record()


def choose_id(given: str | None) -> str:
    """The client's own id for its request if it has a plain form, else a new one."""
    return given if given and _SANE.fullmatch(given) else uuid.uuid4().hex


def to_stdout() -> None:
    """Write the lines, and nothing else, to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class AccessLog:
    """Middleware around all others: gives each request its id, and writes its line, unless the path is `quiet`."""

    def __init__(self, app: ASGIApp, quiet: frozenset[str]) -> None:
        self._app = app
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        token = _current.set(exchange.record)
        try:
            await self._app(scope, receive, exchange.send)
        finally:
            _current.reset(token)
            if scope["path"] not in self._quiet:
                logger.info(orjson.dumps(exchange.line()).decode())


class _Exchange:
    """One request and what was sent back."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.record = Record(choose_id(Headers(scope=scope).get(ID_HEADER)), scope["path"])
        self._scope = scope
        self._send = send
        self._status: int | None = None
        self._last_byte: float | None = None
        self._complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message["headers"], (ID_HEADER.lower().encode(), self.record.id.encode())]
        await self._send(message)
        if message["type"] == "http.response.body":
            self._complete = not message.get("more_body")
            self._last_byte = self.record.age if message.get("body") else self._last_byte

    def line(self) -> dict[str, Any]:
        """The fields that are known, in the order in which people look for them."""
        record, status = self.record, self._status or CLIENT_GONE
        gone = status == CLIENT_GONE or not self._complete
        fields = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": record.id,
            "client": ":".join(map(str, self._scope.get("client") or ("unknown",))),
            "method": self._scope["method"],
            "path": record.path[:_PATH_SHOWN],
            "status": status,
            "duration_seconds": _rounded(record.age),
            "first_token_seconds": _rounded(record.first_token),
            "last_byte_seconds": _rounded(self._last_byte),
            "prompt_tokens": record.prompt_tokens or None,
            "completion_tokens": record.completion_tokens if record.prompt_tokens else None,
            "finish_reasons": record.finish_reasons or None,
            "cause": record.cause or ("client_disconnect" if gone else None),
        }
        return {name: value for name, value in fields.items() if value is not None}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
