"""Carry connections from a listening socket to one address.

The socket may have been opened in another network namespace than the one that dials: that is how the API server is
reached from outside without a bridge, a route or a firewall rule.
"""

import contextlib
import socket
import threading


def start(listener: socket.socket, host: str, port: int) -> None:
    """Serve `listener` in the background for as long as this process lives."""
    threading.Thread(target=_accept, args=(listener, host, port), daemon=True).start()


def _accept(listener: socket.socket, host: str, port: int) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_carry, args=(client, host, port), daemon=True).start()


def _carry(client: socket.socket, host: str, port: int) -> None:
    with client, contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as server:
        server.settimeout(None)
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
