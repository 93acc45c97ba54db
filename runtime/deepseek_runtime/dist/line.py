"""A TCP connection that carries short lines of tab-separated words and never blocks."""

from __future__ import annotations

import contextlib
import socket
import time

LONGEST_LINE = 4096


class Line:
    """One end of the connection. `heard_at` is when anything last came, by the monotonic clock in seconds."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.heard_at = time.monotonic()
        self._buffer = b""

    def send(self, *words: str) -> None:
        """Send a line if the other end takes it. That it does not will show as its silence or its end."""
        with contextlib.suppress(OSError):
            self.socket.send("\t".join(words).encode() + b"\n")

    def finish(self) -> None:
        """Tell the other end that nothing more comes; its lines can still be received."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def receive(self) -> list[list[str]]:
        """The complete lines that have come, as words; OSError once the connection has ended or talks nonsense."""
        try:
            data = self.socket.recv(LONGEST_LINE)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionError("closed")
        self.heard_at = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LONGEST_LINE:
            raise ConnectionError("a line without end")
        return [line.decode(errors="replace").split("\t") for line in lines]
