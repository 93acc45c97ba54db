"""What tests of a running server look at from outside: whether something came true, whether anything is left."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something observable becomes true; AssertionError when it does not in time."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"did not become true within {seconds:g} s"
        sleep(0.005)


def at_rest(server: Any) -> bool:
    """Whether nothing runs, waits or holds cache."""
    stats = server.engine.stats()
    return (stats.running, stats.waiting, stats.cache_usage) == (0, 0, 0)


@contextmanager
def deaf_client(server: Any, path: str, body: dict[str, Any]) -> Iterator[None]:
    """A client that asks for something and reads nothing of it."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.http.port))
        client.sendall(head.encode() + content)
        yield
