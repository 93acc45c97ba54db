"""From token events to pieces of an answer: one `Generation` is one request with all its choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from deepseek_runtime.engine.engine import Broken, Event, Failed, RefusedError, Request, Token
from deepseek_runtime.engine.sampling import Sampled, SamplingParams, TokenMask
from deepseek_runtime.engine.sequence import FinishReason
from deepseek_runtime.server import access_log
from deepseek_runtime.server.courier import Inbox
from deepseek_runtime.server.errors import ApiError, unavailable
from deepseek_runtime.server.recorder import Recorder
from deepseek_runtime.server.service import ServerState, Service
from deepseek_runtime.text.detokenizer import Detokenizer
from deepseek_runtime.text.parser import Content, Part, Reasoning
from deepseek_runtime.text.stops import StopMatcher
from deepseek_runtime.text.tokenizer import Tokenizer


class Parser(Protocol):
    """Tells reasoning, content and tool calls apart, in text that comes bit by bit."""

    def push(self, text: str) -> list[Part]: ...

    def finish(self) -> list[Part]: ...


class Verbatim:
    """The parser for text that is nothing but content."""

    def push(self, text: str) -> list[Part]:
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Prompts, each continued `n` times: choice number = prompt number · n + repetition.

    Every choice has a parser and a mask of its own; those of one request never see what another generated. An answer
    that may reason may open with it, and does where the prompt leaves it `in_reasoning`. `timeout` is in seconds from
    `arrived`, where the request wants less than the server allows.
    """

    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    n: int = 1
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    priority: int = 0
    timeout: float | None = None
    markers: frozenset[str] = frozenset()
    make_parser: Callable[[], Parser] = Verbatim
    make_mask: Callable[[], TokenMask] | None = None
    may_reason: bool = False
    in_reasoning: bool = False
    arrived: float = field(default_factory=time.monotonic)

    def request(self, choice: int, sink: Callable[[Event], None]) -> Request:
        """What the engine is to do for one choice. Repetitions differ in their seeds only."""
        mask = self.make_mask() if self.make_mask else None
        params = replace(self.params, seed=self.params.seed + choice % self.n, mask=mask)
        return Request(self.prompts[choice // self.n], params, sink, self.priority)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one choice, with the tokens behind it. With a finish reason it is the choice's last.

    `stop` is the stop string that ended it, if one did.
    """

    choice: int
    parts: tuple[Part, ...]
    tokens: tuple[Sampled, ...]
    finish_reason: FinishReason | None = None
    stop: str | None = None

    @property
    def text(self) -> str:
        """The new content, without reasoning and tool calls."""
        return "".join(part.text for part in self.parts if isinstance(part, Content))


def join(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces of the same choice made one, in the order in which the choices first occur."""
    groups: dict[int, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.choice, []).append(piece)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(pieces: list[Piece]) -> Piece:
    parts = tuple(part for piece in pieces for part in piece.parts)
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(pieces[0].choice, parts, tokens, pieces[-1].finish_reason, pieces[-1].stop)


class Choice:
    """One sequence so far: whole characters, up to a stop string, told apart by the job's parser."""

    def __init__(self, index: int, tokenizer: Tokenizer, job: Job) -> None:
        self.index = index
        self.tokens = 0
        self.reasoning_tokens = 0
        self.cached = 0
        self.finished = False
        self._answering = not job.may_reason
        self._reasoning = job.in_reasoning
        self._ends = job.params.stop_token_ids
        self._least = job.params.min_tokens
        self._text = Detokenizer(tokenizer, keep=job.markers)
        self._stops = StopMatcher(job.stops, include=job.include_stop)
        self._parser = job.make_parser()
        self._pending: list[Sampled] = []

    def take(self, tokens: Iterable[Token]) -> Piece | None:
        """Take the next tokens; a piece if they make something visible or end the choice."""
        parts: list[Part] = []
        text, reason = "", None
        for token in tokens:
            more, reason = self._take_text(token)
            text += more
            if not self._answering:
                parts += self._parse_reasoning(text)
                text = ""
            if reason is not None:
                break
        parts += self._parser.push(text) if text else []
        parts += self._parser.finish() if reason is not None else []
        if not parts and reason is None:
            return None
        self.finished = reason is not None
        seen, self._pending = tuple(self._pending), []
        return Piece(self.index, tuple(parts), seen, reason, self._stops.matched)

    def _take_text(self, token: Token) -> tuple[str, FinishReason | None]:
        """The text that a token completes, and whether the answer ends with it."""
        self.tokens += 1
        self.cached = token.cached
        self._pending.append(token.sampled)
        reason = token.finish_reason
        ended = reason is FinishReason.STOP and token.sampled.token in self._ends
        watch = self.tokens > self._least
        text = "" if ended else self._stops.push(self._text.push(token.sampled.token), watch=watch)
        if self._stops.matched is not None:
            return text, FinishReason.STOP
        return (text, None) if reason is None else (text + self._stops.flush(), reason)

    def _parse_reasoning(self, text: str) -> list[Part]:
        """The parts of one token, which counts as reasoning until something else has come, the end mark included."""
        parts = self._parser.push(text)
        self._answering = not all(isinstance(part, Reasoning) for part in parts)
        self._reasoning = (self._reasoning or bool(parts)) and not self._answering
        self.reasoning_tokens += self._reasoning
        return parts


class Generation:
    """Submits a job on construction, so that a refusal comes before any answer has begun; then yields its pieces.

    Must be closed, also when nobody reads to the end: what still runs is then cancelled in the engine.
    """

    def __init__(self, state: ServerState, service: Service, job: Job) -> None:
        self.prompt_tokens = sum(map(len, job.prompts))
        self.count = len(job.prompts) * job.n
        self.request_id = access_log.current().id
        self.send_timeout = state.send_timeout
        self._state = state
        self._job = job
        self._engine = service.engine
        self._failure: ApiError | None = None
        self._choices = [Choice(i, service.tokenizer, job) for i in range(self.count)]
        self._inbox = Inbox(state.courier, limit=state.unread_limit * self.count, overrun=self._overrun)
        self._open = self.count
        self._ids = self._submit()
        self._recorder = Recorder(state.metrics, job.arrived, [*map(len, job.prompts)], job.n, job.params.max_tokens)
        self._clock = self._start_clock()
        state.generations.add(self)

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self._choices)

    @property
    def reasoning_tokens(self) -> int:
        return sum(choice.reasoning_tokens for choice in self._choices)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were in the cache already, each prompt counted once."""
        return sum(choice.cached for choice in self._choices[:: self._job.n])

    async def pieces(self) -> AsyncGenerator[Piece | None, None]:
        """Pieces of all choices as they come; None when nothing came for a while, so that a stream can show life.

        Whatever waits for a choice comes as one piece. Raises ApiError when the group breaks or the time is over.
        """
        while self._open:
            events = await self._take()
            if not events:
                yield None
            for piece in self._pieces_of(events):
                yield piece

    def close(self, reason: str = "client_disconnect") -> None:
        """Cancel what is not finished, and count it under `reason`."""
        self._clock.cancel()
        self._state.generations.discard(self)
        unfinished = [choice for choice in self._choices if not choice.finished]
        if unfinished:
            self._engine.cancel([self._ids[choice.index] for choice in unfinished])
        for choice in unfinished:
            choice.finished = True
            self._recorder.finish(choice.index, reason)

    def abort(self) -> None:
        """End it because somebody asked for that; whoever waits for the answer is told."""
        self._fail(ApiError(400, f"request {self.request_id!r} was aborted", code="aborted"), "abort")

    def _submit(self) -> list[int]:
        job = self._job
        try:
            return self._engine.submit([job.request(c.index, self._inbox.sink(c.index)) for c in self._choices])
        except RefusedError as error:
            self._state.metrics.rejected.add(1, error.code)
            raise unavailable(error.code, str(error)) from error
        except ValueError as error:
            raise ApiError(400, str(error), code="context_length_exceeded") from error

    async def _take(self) -> list[tuple[int, Event]]:
        """Events that came, none after a quiet while."""
        quiet = self._inbox.loop.call_later(self._state.keep_alive, self._inbox.wake) if self._inbox.empty else None
        try:
            events = await self._inbox.take()
        finally:
            if quiet:
                quiet.cancel()
        if self._failure:
            raise self._failure
        return events

    def _pieces_of(self, events: list[tuple[int, Event]]) -> Iterator[Piece]:
        """One piece at most for each choice, whatever came for it."""
        tokens: dict[int, list[Token]] = {}
        for index, event in events:
            if self._choices[index].finished:
                continue
            if isinstance(event, Broken):
                self.close(event.code)
                lost = "this server lost its group, try again later: " if event.code == "group_broken" else ""
                raise unavailable(event.code, lost + event.message)
            if isinstance(event, Failed):
                self.close("failed")
                raise ApiError(500, event.message, code="answer_failed")
            tokens.setdefault(index, []).append(event)
        for index, group in tokens.items():
            if not self._choices[index].finished and (piece := self._advance(self._choices[index], group)):
                yield piece

    def _advance(self, choice: Choice, tokens: list[Token]) -> Piece | None:
        before = choice.tokens
        piece = choice.take(tokens)
        self._recorder.tokens(choice.index, choice.tokens - before, tokens[0].admitted_at)
        if piece and piece.finish_reason is not None:
            self._open -= 1
            self._recorder.finish(choice.index, piece.finish_reason)
            if tokens[-1].finish_reason is None:  # ended by a stop string, of which the engine knows nothing
                self._engine.cancel([self._ids[choice.index]])
        return piece

    def _start_clock(self) -> asyncio.TimerHandle:
        limit = min(self._job.timeout or self._state.request_timeout, self._state.request_timeout)
        left = self._job.arrived + limit - time.monotonic()
        error = ApiError(504, f"no complete answer within {limit:g} s", code="timeout")
        return self._inbox.loop.call_later(left, self._fail, error, "timeout")

    def _overrun(self) -> None:
        message = f"the client left more than {self._state.unread_limit} tokens of an answer unread"
        self._fail(ApiError(408, message, code="slow_client"), "slow_client")

    def _fail(self, error: ApiError, reason: str) -> None:
        """Give up, at once and whether or not somebody reads; whoever does is told."""
        self._failure = error
        self.close(reason)
        self._inbox.wake()
