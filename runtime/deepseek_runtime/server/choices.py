"""What chat and plain completions have in common: collect a whole answer, or stream it, in either's shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.responses import Response

from deepseek_runtime.server.generation import Generation, Job, Piece
from deepseek_runtime.server.responses import EventStream, json_response
from deepseek_runtime.server.schemas import GenerationBody
from deepseek_runtime.server.service import ServerState, Service


class Shape(Protocol):
    """How one of the two APIs writes a choice."""

    prefix: str
    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice, before any text."""
        ...

    def whole(self, piece: Piece) -> dict[str, Any]:
        """A finished choice."""
        ...

    def part(self, piece: Piece) -> dict[str, Any]:
        """A piece of a choice in a stream."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's answer: the fields that all of its chunks share, and the generation behind them."""

    shape: Shape
    body: GenerationBody
    generation: Generation
    count: int
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> Response:
        """The answer in one JSON object."""
        pieces: list[list[Piece]] = [[] for _ in range(self.count)]
        try:
            async with aclosing(self.generation.pieces()) as stream:
                async for piece in stream:
                    if piece:
                        pieces[piece.choice].append(piece)
        finally:
            self.generation.close()
        choices = [self.shape.whole(_join(parts)) for parts in pieces]
        return json_response({**self._common(self.shape.whole_object), "choices": choices, "usage": self._usage()})

    def stream(self) -> Response:
        """The answer as server-sent events."""
        return EventStream(self._chunks(), self.generation.close)

    async def _chunks(self) -> AsyncGenerator[dict[str, Any] | None, None]:
        for index in range(self.count):
            if opening := self.shape.opening(index):
                yield self._chunk([opening])
        async with aclosing(self.generation.pieces()) as stream:
            async for piece in stream:
                yield self._chunk([self.shape.part(piece)]) if piece else None
        if self.body.include_usage:
            yield {**self._common(self.shape.chunk_object), "choices": [], "usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.body.include_usage else {}
        return {**self._common(self.shape.chunk_object), "choices": choices, **usage}

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self.generation.prompt_tokens, self.generation.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.generation.cached_tokens},
        }


async def answer(state: ServerState, service: Service, body: GenerationBody, job: Job, shape: Shape) -> Response:
    """Submit the job, and answer in the way that the body asks for."""
    generation = Generation(state, service, job)
    identity = f"{shape.prefix}-{uuid.uuid4().hex}"
    reply = Answer(shape, body, generation, len(job.prompts) * job.n, identity)
    return reply.stream() if body.stream else await reply.whole()


def _join(parts: list[Piece]) -> Piece:
    text = "".join(part.text for part in parts)
    tokens = tuple(token for part in parts for token in part.tokens)
    return Piece(parts[-1].choice, text, tokens, parts[-1].finish_reason)
