"""Where this rank stands, for probes: the state, what the three probes conclude from it, and the port that serves them.

Only the standard library: the port answers before torch is imported, which takes seconds.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Phase(StrEnum):
    """The life of a rank, in order; `draining` and `broken` are its two ends."""

    STARTING = "starting"
    JOINING = "joining"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A rank that holds up the others, for `age` seconds by now."""

    rank: int
    age: float
    message: str


@dataclass(slots=True)
class Loading:
    """How many bytes of this rank's weights are read, and how many a second; `began` is of the monotonic clock."""

    began: float = 0.0
    done: int = 0
    rate: float = 0.0

    def count(self, done: int) -> None:
        """Take the newest number."""
        seconds = time.monotonic() - self.began
        self.done, self.rate = done, done / seconds if seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A probe's answer: HTTP status and a small JSON body."""

    ok: bool
    body: dict[str, Any]

    @property
    def status(self) -> int:
        return 200 if self.ok else 503


class Health:
    """The state of one rank, written by the program and read by probes, from any thread.

    A rank that has proved no progress for `stall_seconds` is stalled and not ready; after `dead_seconds` not alive
    either, so that the kubelet restarts it. An idle group proves progress too (see `engine.engine`). On rank 0 so is
    one that waits for a rank which has fallen behind, and says for which.
    """

    def __init__(self, *, rank: int, world_size: int, stall_seconds: float = 60.0, dead_seconds: float = 300.0) -> None:
        self.rank = rank
        self.world_size = world_size
        self.loading = Loading()
        self._stall_seconds = stall_seconds
        self._dead_seconds = dead_seconds
        self._phase = Phase.STARTING
        self._message = ""
        self._progress = 0.0
        self._step_age: Callable[[], float] = lambda: 0.0
        self._suspect: Callable[[], Suspect | None] = lambda: None
        self._rank_ages: Callable[[], dict[int, float]] = lambda: {}
        self._lock = threading.Lock()

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def message(self) -> str:
        return self._message

    @property
    def progress(self) -> float:
        """The share of this rank's weights that is loaded, 0 to 1."""
        return self._progress

    def enter(self, phase: Phase, message: str = "") -> None:
        """Move on to a phase. What is broken stays broken."""
        with self._lock:
            if phase is Phase.LOADING:
                self.loading.began = time.monotonic()
            if self._phase is not Phase.BROKEN:
                self._phase, self._message = phase, message

    def report(self, progress: float) -> None:
        """Set the share of the weights that is loaded, 0 to 1."""
        self._progress = min(max(progress, 0.0), 1.0)

    def watch(self, step_age: Callable[[], float]) -> None:
        """Take the time in seconds since the last proof of progress from a function."""
        self._step_age = step_age

    def watch_ranks(self, suspect: Callable[[], Suspect | None], ages: Callable[[], dict[int, float]]) -> None:
        """On rank 0: ask these which rank holds up the others, if one does, and when each one last got further."""
        self._suspect = suspect
        self._rank_ages = ages

    def rank_ages(self) -> dict[int, float]:
        """Seconds since each rank got further, as far as this one knows."""
        return {self.rank: self._step_age()} | self._rank_ages()

    def live(self) -> Verdict:
        """Whether the process is worth keeping."""
        stall = self._stall(self._dead_seconds)
        return self._verdict(self._phase is not Phase.BROKEN and (stall is None or stall.age <= self._dead_seconds))

    def started(self) -> Verdict:
        """Whether weights are loaded and the group has joined."""
        return self._verdict(self._phase in (Phase.READY, Phase.DRAINING))

    def ready(self) -> Verdict:
        """Whether new requests are welcome."""
        return self._verdict(self._phase is Phase.READY and not self.stalled)

    @property
    def stalled(self) -> bool:
        """Whether nothing goes on any more."""
        return self._stall(self._stall_seconds) is not None

    @property
    def status(self) -> str:
        """The state in a few words, such as `loading 63 %` or `stalled rank 3`."""
        if self._phase is Phase.LOADING:
            return f"loading {self.progress * 100:.0f} %"
        stall = self._stall(self._stall_seconds) if self._phase is Phase.READY else None
        return f"stalled rank {stall.rank}" if stall else self._phase.value

    def _stall(self, limit: float) -> Suspect | None:
        """Who has proved no progress for so long, which the others know of a rank earlier than the rank itself."""
        if suspect := self._suspect():
            return suspect
        age = self._step_age()
        return Suspect(self.rank, age, f"rank {self.rank} ended no step for {age:.0f} s") if age > limit else None

    def _verdict(self, ok: bool) -> Verdict:
        stall = self._stall(self._stall_seconds) if self._phase is Phase.READY else None
        body: dict[str, Any] = {
            "phase": "stalled" if stall else self._phase,
            "status": self.status,
            "progress": round(self.progress, 4),
            "rank": self.rank,
            "ranks": self.world_size,
            "last_step_age_seconds": round(self._step_age(), 3),
        }
        if stall:
            body |= {"stalled_rank": stall.rank, "stalled_seconds": round(stall.age, 3)}
        if message := stall.message if stall else self._message:
            body["message"] = message
        return Verdict(ok, body)


class HealthServer:
    """Serves `/livez`, `/startupz` and `/readyz` of one rank on a port of its own, in a daemon thread."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        probes = {"/livez": health.live, "/startupz": health.started, "/readyz": health.ready}
        self._server = ThreadingHTTPServer((host, port), _handler(probes))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()


def _handler(probes: dict[str, Callable[[], Verdict]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            probe = probes.get(self.path.partition("?")[0])
            verdict = probe() if probe else None
            body = json.dumps(verdict.body if verdict else {"error": f"try one of {', '.join(probes)}"}).encode()
            self.send_response(verdict.status if verdict else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
            """Probes come every few seconds: they are not news."""

    return Handler


class Heartbeat:
    """Remembers when progress was last proved."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def beat(self) -> None:
        self._at = time.monotonic()

    def age(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._at
