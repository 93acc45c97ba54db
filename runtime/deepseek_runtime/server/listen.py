"""uvicorn in a thread of its own, on a socket that was bound before anything slow began."""

from __future__ import annotations

import socket
import threading
from functools import partial

import uvicorn
from starlette.applications import Starlette

from deepseek_runtime.settings import StartupError


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; StartupError with a sentence where the port cannot be had. Port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(f"port {port} of {host} cannot be used: {error.strerror}; choose another --port") from error
    listener.listen(1024)
    return listener


class HttpServer:
    """Serves an application on a bound socket from its own thread and event loop."""

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
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
