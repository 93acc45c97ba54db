"""From token events to pieces of text: one `Generation` is one HTTP request with all its choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

from deepseek_runtime.engine.engine import Broken, Event, RefusedError, Request, Token
from deepseek_runtime.engine.sampling import Sampled, SamplingParams
from deepseek_runtime.engine.sequence import FinishReason
from deepseek_runtime.server.errors import ApiError, unavailable
from deepseek_runtime.server.metrics import Metrics
from deepseek_runtime.server.service import ServerState, Service
from deepseek_runtime.text.detokenizer import Detokenizer
from deepseek_runtime.text.stops import StopMatcher
from deepseek_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Prompts, each continued `n` times: choice number = prompt number · n + repetition."""

    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    n: int = 1
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    priority: int = 0
    arrived: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one choice, with the tokens behind it. With a finish reason it is the choice's last."""

    choice: int
    text: str
    tokens: tuple[Sampled, ...]
    finish_reason: FinishReason | None


class Choice:
    """Text of one sequence so far: whole characters, up to a stop string."""

    def __init__(self, index: int, tokenizer: Tokenizer, job: Job) -> None:
        self.index = index
        self.tokens = 0
        self.cached = 0
        self.finished = False
        self._ends = job.params.stop_token_ids
        self._text = Detokenizer(tokenizer)
        self._stops = StopMatcher(job.stops, include=job.include_stop)
        self._pending: list[Sampled] = []

    def push(self, token: Token) -> Piece | None:
        """Take a token; a piece if that makes text visible or ends the choice."""
        self.tokens += 1
        self.cached = token.cached
        self._pending.append(token.sampled)
        reason = token.finish_reason
        ended = reason is FinishReason.STOP and token.sampled.token in self._ends
        text = "" if ended else self._stops.push(self._text.push(token.sampled.token))
        if self._stops.matched is not None:
            reason = FinishReason.STOP
        elif reason is not None:
            text += self._stops.flush()
        if not text and reason is None:
            return None
        self.finished = reason is not None
        tokens, self._pending = tuple(self._pending), []
        return Piece(self.index, text, tokens, reason)


class Generation:
    """Submits a job on construction, so that a refusal comes before any answer has begun; then yields its pieces.

    Must be closed, also when nobody reads to the end: what still runs is then cancelled in the engine.
    """

    def __init__(self, state: ServerState, service: Service, job: Job) -> None:
        self.prompt_tokens = sum(map(len, job.prompts))
        self._state = state
        self._job = job
        self._engine = service.engine
        self._deadline = job.arrived + state.request_timeout
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._choices = [Choice(i, service.tokenizer, job) for i in range(len(job.prompts) * job.n)]
        self._ids = self._submit()
        self._timer = _Timer(state.metrics, job.arrived, len(self._choices))
        state.metrics.prompt_tokens.add(self.prompt_tokens)

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were in the cache already, each prompt counted once."""
        return sum(choice.cached for choice in self._choices[:: self._job.n])

    async def pieces(self) -> AsyncGenerator[Piece | None, None]:
        """Pieces of all choices as they come; None when nothing came for a while, so that a stream can show life.

        Raises ApiError when the group breaks or the request's time is over.
        """
        while not all(choice.finished for choice in self._choices):
            event = await self._next_event()
            if event is None:
                yield None
            elif piece := self._take(*event):
                yield piece

    def close(self, reason: str = "client_disconnect") -> None:
        """Cancel what is not finished, and count it under `reason`."""
        unfinished = [choice for choice in self._choices if not choice.finished]
        self._engine.cancel([self._ids[choice.index] for choice in unfinished])
        for choice in unfinished:
            choice.finished = True
            self._timer.finish(reason)

    def _submit(self) -> list[int]:
        sinks = [_sink(self._events, asyncio.get_running_loop(), choice.index) for choice in self._choices]
        job = self._job
        requests = [
            Request(job.prompts[i // job.n], replace(job.params, seed=job.params.seed + i % job.n), sink, job.priority)
            for i, sink in enumerate(sinks)
        ]
        try:
            return self._engine.submit(requests)
        except RefusedError as error:
            self._state.metrics.rejected.labels(error.code).inc()
            raise unavailable(error.code, str(error)) from error

    async def _next_event(self) -> tuple[int, Event] | None:
        left = self._deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(left, self._state.keep_alive)):
                return await self._events.get()
        except TimeoutError:
            if time.monotonic() < self._deadline:
                return None
            self.close("timeout")
            seconds = self._state.request_timeout
            raise ApiError(504, f"no complete answer within {seconds:g} s", code="timeout") from None

    def _take(self, index: int, event: Event) -> Piece | None:
        choice = self._choices[index]
        if choice.finished:
            return None
        if isinstance(event, Broken):
            self.close("group_broken")
            raise unavailable("group_broken", f"this server lost its group, try again later: {event.message}")
        self._timer.token(index)
        piece = choice.push(event)
        if piece and piece.finish_reason is not None:
            self._timer.finish(piece.finish_reason)
            if event.finish_reason is None:  # ended by a stop string, of which the engine knows nothing
                self._engine.cancel([self._ids[index]])
        return piece


class _Timer:
    """Latencies of one request's choices, for the histograms."""

    def __init__(self, metrics: Metrics, arrived: float, choices: int) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._last: list[float | None] = [None] * choices

    def token(self, choice: int) -> None:
        now, last = time.monotonic(), self._last[choice]
        if last is None:
            self._metrics.first_token.add(now - self._arrived)
        else:
            self._metrics.next_token.add(now - last)
        self._last[choice] = now
        self._metrics.generated_tokens.add(1)

    def finish(self, reason: str) -> None:
        self._metrics.finished.add(1, reason)
        self._metrics.latency.add(time.monotonic() - self._arrived)


def _sink(
    events: asyncio.Queue[tuple[int, Event]], loop: asyncio.AbstractEventLoop, index: int
) -> Callable[[Event], None]:
    """Carries events of the engine's thread over to the event loop."""

    def deliver(event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

    return deliver
