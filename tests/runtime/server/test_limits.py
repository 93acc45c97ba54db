"""What a client cannot take of the server: sizes, time, connections; over raw sockets, as no decent client would."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from deepseek_runtime.server.limits import MIB, Bounds
from observing import eventually

ServerMaker = Callable[..., Any]
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", server.http.port), timeout=10)) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def error_of(answer: bytes) -> tuple[int, str]:
    """Status and code of the only answer on a connection, which is in the envelope."""
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), error["code"]


def ask(**extra: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": "abc"}], "temperature": 0, **extra}


def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(body=1000))
    with connected(server) as connection:
        connection.sendall(CHAT + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        assert error_of(read_all(connection)) == (413, "body_too_large")


def test_a_body_that_grows_too_large_is_refused_while_it_comes(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(body=1000))
    server.open()
    with connected(server) as connection:
        connection.sendall(CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + b"fa\r\n%s\r\n" % (b" " * 250) * 5)
        assert error_of(read_all(connection)) == (413, "body_too_large")


def test_a_client_that_sends_all_of_a_body_that_is_too_large_still_gets_its_answer(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(body=MIB))
    server.open()
    response = server.client.post("/v1/chat/completions", content=b" " * 20 * MIB)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert server.client.post("/v1/chat/completions", json=ask()).status_code == 200


def test_a_body_of_exactly_the_limit_is_taken(make_server: ServerMaker) -> None:
    body = json.dumps(ask()).encode()
    server = make_server(bounds=Bounds(body=len(body)))
    server.open()
    assert server.client.post("/v1/chat/completions", content=body).status_code == 200
    assert server.client.post("/v1/chat/completions", content=body + b" ").status_code == 413


def test_a_body_that_drips_is_cut_off_and_holds_nothing(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(body_seconds=0.3))
    server.open()
    with connected(server) as connection:
        start = monotonic()
        connection.sendall(CHAT + b"Content-Length: 100\r\n\r\n{")
        eventually(lambda: server.state.metrics.in_flight == 1)
        assert server.engine.stats().waiting == 0
        assert error_of(read_all(connection)) == (408, "slow_upload")
        assert monotonic() - start < 5
    assert server.state.metrics.in_flight == 0


def test_headers_that_drip_are_cut_off(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(header_seconds=0.2))
    with connected(server) as slow, connected(server) as silent:
        slow.sendall(CHAT + b"X-Sl")
        assert error_of(read_all(slow)) == (408, "slow_headers")
        assert read_all(silent) == b""


def test_a_long_answer_is_not_taken_for_slow_headers(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(header_seconds=0.1))
    server.open()
    server.executor.gate.clear()
    with connected(server) as connection:
        body = json.dumps(ask()).encode()
        connection.sendall(CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"GET /liv")
        eventually(lambda: server.engine.stats().running == 1)
        sleep(0.3)
        server.executor.gate.set()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        b"X-Large: " + b"a" * 3000 + b"\r\n\r\n",
        b"X-Endless: " + b"a" * 100_000,
        b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + b"\r\n",
    ],
    ids=["one large", "endless", "many"],
)
def test_headers_that_are_too_large_are_refused(make_server: ServerMaker, head: bytes) -> None:
    server = make_server(bounds=Bounds(headers=2000))
    with connected(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + head)
        assert error_of(read_all(connection)) == (431, "headers_too_large")
    assert server.client.get("/livez").status_code == 200


@pytest.mark.parametrize(
    "words", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_http_is_told_so_in_the_envelope(make_server: ServerMaker, words: bytes) -> None:
    with connected(make_server()) as connection:
        connection.sendall(words)
        assert error_of(read_all(connection)) == (400, "invalid_http")


def test_more_connections_than_are_taken_are_sent_away_and_return_later(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(connections=2))
    with connected(server), connected(server), connected(server) as third:
        answer = read_all(third)
        assert error_of(answer) == (429, "too_many_connections")
        assert b"Retry-After: " in answer
    eventually(lambda: httpx.get(f"{server.url}/livez").status_code == 200)


def test_more_requests_in_work_than_are_taken_get_429_while_probes_pass(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(requests=1))
    server.open()
    with connected(server) as connection:
        connection.sendall(CHAT + b"Content-Length: 100\r\n\r\n{")
        eventually(lambda: server.state.metrics.in_flight == 1)
        refused = server.client.post("/v1/chat/completions", json=ask())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert int(refused.headers["retry-after"]) > 0
        assert server.client.get("/readyz").status_code == 200
        assert server.metric("dsv3_requests_in_flight") == 1
    eventually(lambda: server.state.metrics.in_flight == 0)
    assert server.client.post("/v1/chat/completions", json=ask()).status_code == 200
    assert server.metric('dsv3_requests_rejected_total{code="too_many_requests"}') == 1


def test_bodies_of_all_requests_together_are_bounded(make_server: ServerMaker) -> None:
    server = make_server(bounds=Bounds(uploads=1000))
    server.open()
    with connected(server) as connection:
        connection.sendall(CHAT + b"Content-Length: 900\r\n\r\n" + b" " * 800)
        eventually(lambda: server.state.metrics.in_flight == 1)
        eventually(lambda: server.client.post("/v1/chat/completions", json=ask(user="u" * 300)).status_code == 429)
    eventually(lambda: server.state.metrics.in_flight == 0)
    assert server.client.post("/v1/chat/completions", json=ask(user="u" * 300)).status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_crash(
    make_server: ServerMaker, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server()
    server.open()
    with connected(server) as connection:
        connection.sendall(CHAT + b"Content-Length: 100\r\n\r\n{")
        eventually(lambda: server.state.metrics.in_flight == 1)
    eventually(lambda: server.state.metrics.in_flight == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_request_that_would_like_http2_is_answered_in_http1(server: Any) -> None:
    """As clients of Java send it with every first request."""
    body = json.dumps(ask()).encode()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
    with connected(server) as connection:
        connection.sendall(CHAT + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
