"""How answers leave: JSON or server-sent events, and in both cases work stops within a step when the client is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepseek_runtime.server.errors import ApiError

logger = logging.getLogger(__name__)

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"


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
    """A stream of chunks as server-sent events, ended by `[DONE]`, or by a chunk with `error` when it fails midway.

    None among the chunks becomes a comment, which keeps proxies from cutting a silent connection. `close` is called at
    the end in any case, also when the client left before the first chunk was asked for.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[dict[str, Any] | None, None], close: Callable[[], None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({sender, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
            else:
                logger.info("client %s left in the middle of its stream", _peer(scope))
        finally:
            await _end(sender, gone)
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames()) as frames:
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    yield _KEEP_ALIVE if chunk is None else _frame(chunk)
            yield _DONE
        except ApiError as error:
            yield _frame(error.envelope)
        except Exception:
            logger.exception("stream failed")
            yield _frame(ApiError(500, "the server failed in the middle of this answer").envelope)


def _frame(chunk: object) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


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
