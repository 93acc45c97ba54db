"""How answers leave: JSON or server-sent events, and in both cases work stops within a step when the client is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepseek_runtime.server.errors import ApiError

logger = logging.getLogger(__name__)

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def frame(data: bytes) -> bytes:
    """Data, without line breaks, as a server-sent event."""
    return b"data: " + data + b"\n\n"


def _failure(error: ApiError) -> bytes:
    return frame(orjson.dumps(error.envelope))


@dataclass(frozen=True, slots=True)
class Framing:
    """How an API's streams write what is not part of an answer: the end, a sign of life, and why there is no more."""

    done: bytes = frame(b"[DONE]")
    idle: bytes = b": keep-alive\n\n"
    failure: Callable[[ApiError], bytes] = _failure


def json_response(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


async def until_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The work's response; when the client leaves first, the work is cancelled and nobody reads the empty response."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        logger.info("client %s left before its answer to %s was ready", _peer(request.scope), request.url.path)
        return Response(status_code=499)
    finally:
        await _end(task, gone)


class EventStream(Response):
    """A stream of frames as server-sent events, ended as its API does it, also when it fails midway.

    None among the frames becomes a sign of life, which keeps proxies from cutting a silent connection. `close` is
    called at the end in any case, also when the client left before the first frame was asked for, with the reason why
    whatever is unfinished never will be. A client that takes nothing for `patience` seconds while there is something
    for it is cut off.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes | None, None],
        close: Callable[[str], None],
        *,
        framing: Framing = Framing(),
        patience: float = 30.0,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._frames = frames
        self._close = close
        self._framing = framing
        self._patience = patience
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        self._watch(sender)
        reason = "client_disconnect"
        try:
            await asyncio.wait({sender, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sender.cancelled():
                reason = "slow_client"
                logger.info("client %s took nothing of its stream for %g s", _peer(scope), self._patience)
            elif sender.done():
                sender.result()
            else:
                logger.info("client %s left in the middle of its stream", _peer(scope))
        finally:
            self._timer.cancel()
            await _end(sender, gone)
            self._close(reason)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._guarded()) as frames:
            async for data in frames:
                self._sending_since = time.monotonic()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self._sending_since = None
        await send({"type": "http.response.body", "body": b""})

    async def _guarded(self) -> AsyncGenerator[bytes, None]:
        """The frames, and how they end."""
        try:
            async with aclosing(self._frames) as frames:
                async for data in frames:
                    yield self._framing.idle if data is None else data
            if self._framing.done:
                yield self._framing.done
        except ApiError as error:
            yield self._framing.failure(error)
        except Exception:
            logger.exception("stream failed")
            yield self._framing.failure(ApiError(500, "the server failed in the middle of this answer"))

    def _watch(self, sender: asyncio.Future[None]) -> None:
        """End the sender when one frame has waited for the client for too long."""
        since = self._sending_since
        waited = 0.0 if since is None else time.monotonic() - since
        if waited >= self._patience:
            sender.cancel()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._patience - waited, self._watch, sender)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait until its clean-up is done."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _peer(scope: Scope) -> str:
    host, port = scope.get("client") or ("unknown", 0)
    return f"{host}:{port}"
