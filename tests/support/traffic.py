"""Clients that ask in a loop while the servers change under them: `python traffic.py KIND URL CLIENTS`.

Each of the KINDs "streams" and "answers" is a way to ask once. Every client asks again and again until standard input
ends and then finishes what it began; what happens to it comes out as one JSON line an `Event`, at once.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import openai

from cluster_access import Cluster

QUESTION = [{"role": "user", "content": "What is 792 minus 297?"}]
LONG_TOKENS = 1200
CONNECT_S = 3.0
SILENCE_S = 60.0
RETRY_S = 0.5

Kind = Literal["streams", "answers"]
What = Literal["began", "whole", "told", "refused", "unconnected", "cut", "failed"]
"""began: the first chunk came. whole: the answer came to its end. told: an error event ended the stream.
refused: a status other than 200. unconnected: nobody took the connection. cut: anything that ends without a word.
failed: the SDK gave up."""


@dataclass(frozen=True)
class Event:
    """What happened to one client, and in what words."""

    client: int
    what: What
    detail: str = ""


Report = Callable[[What, str], None]


class Traffic:
    """Clients under way, seen from the test."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._events: list[Event] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait(self, condition: Callable[[list[Event]], bool], what: str, *, timeout: float = 120) -> None:
        """Return as soon as `condition` holds for the events that came after this call."""
        with self._news:
            seen = len(self._events)
            held = self._news.wait_for(lambda: condition(self._events[seen:]), timeout)
        assert held, f"{what}: not within {timeout} s; the last events: {self._events[-10:]}"

    def wait_for_all(self, what: What, clients: int) -> None:
        """Return once something has happened to every client from now on."""
        self.wait(lambda events: len({e.client for e in events if e.what == what}) == clients, f"every client: {what}")

    def stop(self) -> list[Event]:
        """Let the clients finish what they began; all that happened."""
        assert self._process.stdin
        self._process.stdin.close()
        self._reader.join()
        assert self._process.wait() == 0
        return self._events

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self._news:
                self._events.append(Event(**json.loads(line)))
                self._news.notify_all()


@contextmanager
def traffic(cluster: Cluster, kind: Kind, url: str, clients: int) -> Iterator[Traffic]:
    """Clients that run from within the cluster's network until `stop`, or else until the block ends."""
    command = cluster.in_network([sys.executable, __file__, kind, url, str(clients)])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=dict(cluster.environment), stdin=pipe, stdout=pipe, text=True) as process:
        under_way = Traffic(process)
        try:
            yield under_way
        finally:
            under_way.stop()


def tally(events: list[Event]) -> dict[str, int]:
    """How often each thing happened."""
    return dict(Counter(event.what for event in events))


class Streams:
    """Asks for a long stream over a connection of its own, and reads it without an SDK that would smooth it over."""

    def __init__(self, url: str, _client: int) -> None:
        self._host = urlsplit(url).netloc
        body: dict[str, Any] = {"model": "tutor", "messages": QUESTION, "stream": True, "temperature": 0}
        self._body = json.dumps({**body, "max_tokens": LONG_TOKENS, "ignore_eos": True})

    def __call__(self, report: Report) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=CONNECT_S)
        try:
            connection.connect()
        except OSError as error:
            return report("unconnected", repr(error))
        try:
            connection.sock.settimeout(SILENCE_S)
            connection.request("POST", "/v1/chat/completions", self._body, {"Content-Type": "application/json"})
            report(*self._outcome(connection.getresponse(), report))
        except (OSError, http.client.HTTPException) as error:
            report("cut", repr(error))
        finally:
            connection.close()

    def _outcome(self, response: http.client.HTTPResponse, report: Report) -> tuple[What, str]:
        if response.status != 200:
            return "refused", f"{response.status} {response.headers['Retry-After']} {response.read().decode()}"
        chunks = 0
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                return "whole", f"{chunks} chunks"
            if data.startswith('{"error"'):
                return "told", data
            if data and not data.startswith(":"):
                chunks += 1
                if chunks == 1:
                    report("began", "")
        return "cut", f"the stream ended after {chunks} chunks without a word"


class Answers:
    """Asks for a whole answer through the SDK, with everything but the address as the SDK has it by default.

    Every other client's answers are long: the others, over connections kept alive, meet a server that still drains.
    """

    def __init__(self, url: str, client: int) -> None:
        self._body: dict[str, Any] = {"model": "tutor", "messages": QUESTION, "temperature": 0}
        if client % 2:
            self._body |= {"max_tokens": LONG_TOKENS, "extra_body": {"ignore_eos": True}}
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")

    def __call__(self, report: Report) -> None:
        started = time.monotonic()
        try:
            self._client.chat.completions.create(**self._body)
        except openai.OpenAIError as error:
            report("failed", f"{error!r} caused by {error.__cause__!r}, {time.monotonic() - started:.1f} s")
        else:
            report("whole", f"{time.monotonic() - started:.1f} s")


def main() -> None:
    """Let the clients ask until standard input ends."""
    kind, url, clients = sys.argv[1:]
    ask = {"streams": Streams, "answers": Answers}[kind]
    stop = threading.Event()
    threads = [
        threading.Thread(target=_ask_on, args=(ask(url, client), client, stop)) for client in range(int(clients))
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


_OUTPUT = threading.Lock()


def _ask_on(ask: Callable[[Report], None], client: int, stop: threading.Event) -> None:
    def report(what: What, detail: str) -> None:
        with _OUTPUT:
            sys.stdout.write(json.dumps(asdict(Event(client, what, detail))) + "\n")
            sys.stdout.flush()
        if what in ("refused", "unconnected"):
            stop.wait(RETRY_S)  # a client's manners, and room for the others on a small machine

    while not stop.is_set():
        ask(report)


if __name__ == "__main__":
    main()
