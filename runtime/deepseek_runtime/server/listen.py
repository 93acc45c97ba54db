"""uvicorn in a thread of its own, on a socket that was bound before anything slow began.

Its protocol is bounded where uvicorn's is not: in connections, and in the size and duration of a request's head.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import threading
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepseek_runtime.server.errors import ApiError
from deepseek_runtime.server.limits import Bounds
from deepseek_runtime.settings import StartupError

UNREAD_MILLISECONDS = 60_000
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; StartupError with a sentence where the port cannot be had. Port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":  # what a client does not take for so long is given up, and its connection with it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(f"port {port} of {host} cannot be used: {error.strerror}; choose another --port") from error
    listener.listen(1024)
    return listener


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Whoever sends too large a head, or too slowly, or no HTTP at all, is told so and cut off."""

    def __init__(self, *args: Any, bounds: Bounds, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bounds = bounds
        self._head_size: int | None = 0
        """Bytes of the head that is being read; None between the end of one and the beginning of the next."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            message = f"{self._bounds.connections} connections are open, the most that this server takes"
            self._refuse(ApiError(429, message, code="too_many_connections"))
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_size is not None:
            self._head_size += len(data)
            data = without_upgrade(data)
        super().data_received(data)
        if self._head_size is not None and self._head_size > self._bounds.headers and not self.transport.is_closing():
            self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_size = self._head_size or 0
        self._start_timer()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._bounds.headers:
            self._head_size = size
            raise _HeadTooLargeError
        self._head_size = None
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what it cannot parse, in the envelope."""
        size = self._head_size or 0
        self._refuse(self._too_large() if size > self._bounds.headers else ApiError(400, msg, code="invalid_http"))

    def _too_large(self) -> ApiError:
        message = f"the request's headers have more than {self._bounds.headers} bytes"
        return ApiError(431, message, code="headers_too_large")

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._bounds.header_seconds, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        if self.cycle and not self.cycle.response_complete:  # an answer is on its way here: never cut into it
            self._start_timer()
        elif not self._head_size:
            self.transport.close()
        else:
            message = f"the request's headers did not come within {self._bounds.header_seconds:g} s"
            self._refuse(ApiError(408, message, code="slow_headers"))

    def _refuse(self, error: ApiError) -> None:
        fields = {
            **error.headers,
            "content-type": "application/json",
            "content-length": str(len(error.body)),
            "connection": "close",
        }
        head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *map(": ".join, fields.items())]
        self.transport.write("\r\n".join((*head, "", "")).encode() + error.body)
        self.transport.close()


def without_upgrade(data: bytes) -> bytes:
    """A head that offers no other protocol. Offers may be ignored, but the parser takes what follows one for that
    protocol, and would lose the body; HTTP clients of Java offer HTTP/2 with each first request.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-upgrade:", head) + end + rest


class _HeadTooLargeError(Exception):
    """Tells the parser to stop."""


class HttpServer:
    """Serves an application on a bound socket from its own thread and event loop."""

    def __init__(self, app: Starlette, listener: socket.socket, bounds: Bounds | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=partial(BoundedProtocol, bounds=bounds or Bounds()),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
        self.app = app
        self._server = uvicorn.Server(config)
        self._listener = listener
        serve = partial(self._server.run, sockets=[listener])
        self._thread = threading.Thread(target=serve, name="http", daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Finish the responses that are under way, for a second at most, and leave."""
        self._server.should_exit = True
        self._thread.join(timeout)
