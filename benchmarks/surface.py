"""How much the HTTP surface costs beside an engine: `python benchmarks/surface.py`.

A server process on one core has a fake engine, which emits tokens at a fixed rate and computes nothing; clients on the
other cores read its streams, and check that every character arrived. Then short requests go one by one, so that what
they take is the surface's own time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime")]

from deepseek_runtime.engine.engine import Request, Token
from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.engine.sequence import FinishReason
from deepseek_runtime.settings import checkpoint_folder

TEXT = "The quick brown fox jumps over the lazy dog, and 你好 means hello 🙂. "
QUESTION = "Tell me something about foxes, please."


class Ticker:
    """In the engine's place: every `period` seconds, or at once if 0, each running request gets its next token."""

    def __init__(self, tokens: Sequence[int], period: float) -> None:
        self._tokens = tokens
        self._period = period
        self._running: dict[int, tuple[Request, int]] = {}
        self._ids = 0
        self._lock = threading.Lock()
        self._work = threading.Event()
        self.late = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, requests: Sequence[Request]) -> list[int]:
        with self._lock:
            ids = list(range(self._ids, self._ids + len(requests)))
            self._ids += len(requests)
            self._running |= {id_: (request, 0) for id_, request in zip(ids, requests, strict=True)}
        self._work.set()
        return ids

    def cancel(self, ids: Sequence[int]) -> None:
        with self._lock:
            for id_ in ids:
                self._running.pop(id_, None)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            if not self._running:
                self._work.clear()
                self._work.wait()
                due = time.monotonic()
            self._step()
            due += self._period
            left = due - time.monotonic()
            self.late = max(self.late, -left)
            if self._period and left > 0:
                time.sleep(left)

    def _step(self) -> None:
        with self._lock:
            running = list(self._running.items())
        for id_, (request, count) in running:
            last = count + 1 >= request.params.max_tokens
            token = Sampled(self._tokens[count % len(self._tokens)])
            request.sink(Token(token, FinishReason.LENGTH if last else None))
            with self._lock:
                if last:
                    self._running.pop(id_, None)
                elif id_ in self._running:
                    self._running[id_] = (request, count + 1)


def serve(period: float) -> None:
    """The server's process: tells its port, and when its input ends how late its engine was."""
    from deepseek_runtime.health import Health, Phase
    from deepseek_runtime.server.app import build_app
    from deepseek_runtime.server.listen import HttpServer, bind
    from deepseek_runtime.server.metrics import Metrics
    from deepseek_runtime.server.service import ServerState, Service
    from deepseek_runtime.text.grammar import Grammars
    from deepseek_runtime.text.template import ChatTemplate
    from deepseek_runtime.text.tokenizer import Tokenizer

    folder = checkpoint_folder("tutor")
    tokenizer = Tokenizer(folder)
    template = ChatTemplate(folder, tokenizer)
    engine: Any = Ticker(tokenizer.encode(TEXT), period)
    state = ServerState(names=("tutor",), health=Health(rank=0, world_size=1), metrics=Metrics("tutor"))
    state.service = Service(
        engine=engine,
        tokenizer=tokenizer,
        template=template,
        grammars=Grammars(tokenizer, template.dialect),
        max_model_len=10**6,
        places=10**6,
    )
    state.health.enter(Phase.READY)
    server = HttpServer(build_app(state), bind("127.0.0.1", 0))
    server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    sys.stdout.write(f"{engine.late}\n")


class Server:
    """The server's process, on a core of its own where there is more than one."""

    def __init__(self, period: float) -> None:
        command = [sys.executable, __file__, "--serve", str(period)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first, *others = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self._process.pid, {first})
        self._mine = set(others or [first])
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Server:
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._mine)
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._before)
        if self._process.poll() is None:
            self.end()

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> float:
        """How late the engine's steps were at worst, in seconds."""
        output, _ = self._process.communicate("")
        return float(output)


async def post(port: int, body: dict[str, Any]) -> bytes:
    """The whole answer to a chat request, headers included."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    writer.write(_request(body, close=True))
    answer = await reader.read(-1)
    writer.close()
    return answer


def _request(body: dict[str, Any], *, close: bool) -> bytes:
    message = {"model": "tutor", "messages": [{"role": "user", "content": QUESTION}], **body}
    content = json.dumps(message).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\nConnection: {'close' if close else 'keep-alive'}\r\n\r\n"
    return head.encode() + content


@dataclass(frozen=True)
class Streams:
    """Figures of many streams at once; `cpu` is the server's share of one core."""

    streams: int
    tokens_per_second: float
    behind_seconds: float
    engine_late_seconds: float
    cpu: float
    tokens_per_chunk: float


def measure_streams(streams: int, rate: float, seconds: float) -> Streams:
    """Read `streams` streams of an engine that emits `rate` tokens a second in all."""
    period, tokens = streams / rate, int(rate * seconds / streams)
    with Server(period) as server:
        body = {"stream": True, "max_tokens": tokens}
        asyncio.run(post(server.port, {**body, "max_tokens": 100}))  # a first one, for what is only done once

        async def read_all() -> list[bytes]:
            return await asyncio.gather(*(post(server.port, body) for _ in range(streams)))

        cpu, start = server.cpu(), time.monotonic()
        answers = asyncio.run(read_all())
        took, cpu = time.monotonic() - start, server.cpu() - cpu
        late = server.end()
    chunks = [_contents(answer) for answer in answers]
    expected = (TEXT * (tokens + 1))[: len("".join(chunks[0]))]
    assert all("".join(texts) == expected for texts in chunks), "text was lost on the way"
    return Streams(
        streams=streams,
        tokens_per_second=streams * tokens / took,
        behind_seconds=took - tokens * period,
        engine_late_seconds=late,
        cpu=cpu / took,
        tokens_per_chunk=streams * tokens / sum(map(len, chunks)),
    )


def _contents(answer: bytes) -> list[str]:
    events = [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return [delta["content"] for delta in deltas if delta.get("content")]


@dataclass(frozen=True)
class Overhead:
    """Milliseconds that a request of one token takes beside an engine that takes none."""

    stream: bool
    p50: float
    p99: float


def measure_overhead(requests: int, *, stream: bool) -> Overhead:
    """Ask one by one over one connection."""
    with Server(0.0) as server:
        times = asyncio.run(_ask_in_turn(server.port, requests, stream))
    cuts = statistics.quantiles([time * 1000 for time in times], n=100)
    return Overhead(stream, cuts[49], cuts[98])


async def _ask_in_turn(port: int, requests: int, stream: bool) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request, end = _request({"max_tokens": 1, "stream": stream}, close=False), b"0\r\n\r\n" if stream else b"}}"
    times = []
    for _ in range(requests + 100):
        start = time.perf_counter()
        writer.write(request)
        await reader.readuntil(end)
        times.append(time.perf_counter() - start)
    writer.close()
    return times[100:]


def main() -> None:
    """Measure and print, one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rate", type=float, default=20000, help="tokens a second, over all streams")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="for the overhead of one")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    for figures in (
        measure_streams(options.streams, options.rate, options.seconds),
        measure_overhead(options.requests, stream=False),
        measure_overhead(options.requests, stream=True),
    ):
        sys.stdout.write(json.dumps(asdict(figures)) + "\n")


if __name__ == "__main__":
    main()
