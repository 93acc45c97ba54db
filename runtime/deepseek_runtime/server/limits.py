"""How much one client, and all of them together, may take of the server before any work is done for them.

Sizes are judged before anything more is read, slow uploads by the clock, and whoever is turned away is told in words.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_runtime.server.errors import ApiError
from deepseek_runtime.server.metrics import Metrics

LINGER_SECONDS = 2.0
"""How long the rest of a refused upload is thrown away: a connection closed at once would lose the answer, too."""

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What is taken; sizes in bytes, times in seconds. `uploads` bounds the bodies of all requests in work together."""

    body: int = 32 * MIB
    uploads: int = 512 * MIB
    body_seconds: float = 60.0
    requests: int = 1024
    headers: int = 64 * 2**10
    header_seconds: float = 15.0
    connections: int = 4096


class Limits:
    """Middleware that bounds requests in work, and the size and duration of their bodies, but on `exempt` paths."""

    def __init__(self, app: ASGIApp, bounds: Bounds, metrics: Metrics, exempt: frozenset[str]) -> None:
        self._app = app
        self._bounds = bounds
        self._metrics = metrics
        self._exempt = exempt
        self._uploaded = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
        elif self._metrics.in_flight >= self._bounds.requests:
            await self._busy(f"{self._bounds.requests} requests are in work").response()(scope, receive, send)
        else:
            await self._serve(scope, _Upload(self, scope, receive), send)

    async def _serve(self, scope: Scope, upload: _Upload, send: Send) -> None:
        self._metrics.in_flight += 1
        try:
            if error := self.judge(upload.announced, upload.announced):
                upload.refused = True
                await error.response()(scope, upload.receive, upload.closing(send))
            else:
                await self._app(scope, upload.receive, upload.closing(send))
        finally:
            self._metrics.in_flight -= 1
            self._uploaded -= upload.size

    def judge(self, more: int, whole: int) -> ApiError | None:
        """What is wrong with `more` bytes, for a body that has `whole` of them with those."""
        if whole > self._bounds.body:
            return ApiError(413, f"the body is larger than {self._bounds.body / MIB:g} MiB", code="body_too_large")
        if self._uploaded + more > self._bounds.uploads:
            return self._busy(f"all requests' bodies together have {self._bounds.uploads / MIB:g} MiB")
        return None

    def count(self, size: int) -> None:
        """Note bytes that came; they count until their request ends."""
        self._uploaded += size

    @property
    def seconds(self) -> float:
        """Time for a whole body."""
        return self._bounds.body_seconds

    def _busy(self, what: str) -> ApiError:
        self._metrics.rejected.add(1, "too_many_requests")
        return ApiError(429, f"{what}, the most that this server takes: try again later", code="too_many_requests")


class _Upload:
    """A request's body on its way in. Once it was refused nothing more of it is kept."""

    def __init__(self, limits: Limits, scope: Scope, receive: Receive) -> None:
        announced = Headers(scope=scope).get("content-length", "0")
        self.announced = int(announced) if announced.isdecimal() else 0
        self.size = 0
        self.refused = False
        self._limits = limits
        self._receive = receive
        self._whole = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """The next message, as the application is to see it; ApiError 413 or 408 for a body that is not to be taken."""
        if self._whole or self.refused:
            return await self._receive()
        message = await self._in_time()
        if message["type"] == "http.request":
            self._take(len(message.get("body", b"")))
            self._whole = not message.get("more_body")
        return message

    def closing(self, send: Send) -> Send:
        """A `send` that ends the connection, after a while of listening, when the body was refused."""

        async def wrapped(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if self.refused and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif self.refused and last:
                await send({**message, "more_body": True})
                await self._discard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return wrapped

    async def _in_time(self) -> Message:
        loop = asyncio.get_running_loop()
        self._deadline = self._deadline or loop.time() + self._limits.seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            self.refused = True
            message = f"the body did not come within {self._limits.seconds:g} s"
            raise ApiError(408, message, code="slow_upload") from None

    def _take(self, size: int) -> None:
        if error := self._limits.judge(size, self.size + size):
            self.refused = True
            raise error
        self.size += size
        self._limits.count(size)

    async def _discard(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
