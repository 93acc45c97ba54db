"""What chat and plain completions have in common: collect a whole answer, or stream it, in either's shape."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
from starlette.responses import Response

from deepseek_runtime.server.generation import Generation, Piece, join
from deepseek_runtime.server.responses import EventStream, frame, json_response
from deepseek_runtime.server.schemas import GenerationBody
from deepseek_runtime.server.shapes import Shape


@dataclass(frozen=True)
class Answer:
    """One request's answer: the fields that all of its chunks share, and the generation behind them."""

    shape: Shape
    body: GenerationBody
    generation: Generation
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    async def respond(self) -> Response:
        """The answer in the way that the body asks for."""
        if not self.body.stream:
            return await self._whole()
        return EventStream(self._frames(), self.generation.close, patience=self.generation.send_timeout)

    async def _whole(self) -> Response:
        pieces: list[Piece] = []
        try:
            async with aclosing(self.generation.pieces()) as stream:
                async for piece in stream:
                    if piece:
                        pieces.append(piece)
        finally:
            self.generation.close()
        choices = [self.shape.whole(piece) for piece in sorted(join(pieces), key=lambda piece: piece.choice)]
        return json_response({**self._common(self.shape.whole_object), "choices": choices, "usage": self._usage()})

    async def _frames(self) -> AsyncGenerator[bytes | None, None]:
        for choice in range(self.generation.count):
            for data in self._write(self.shape.opening(choice)):
                yield data
        async with aclosing(self.generation.pieces()) as stream:
            async for piece in stream:
                if piece is None:
                    yield None
                else:
                    yield b"".join(self._write(self.shape.chunks(piece)))
        if self.body.include_usage:
            yield self._chunk(b"", self._usage())

    def _write(self, choices: Iterable[dict[str, Any]]) -> list[bytes]:
        """A frame for each choice that is to be a chunk of its own."""
        usage = self._usage() if self.body.continuous_usage else None
        return [self._chunk(orjson.dumps(choice), usage) for choice in choices]

    def _chunk(self, choice: bytes, usage: dict[str, Any] | None) -> bytes:
        tail = b',"usage":' + orjson.dumps(usage) if self.body.include_usage else b""
        return frame(b'%s,"choices":[%s]%s}' % (self._head, choice, tail))

    @cached_property
    def _head(self) -> bytes:
        """The beginning of every chunk, up to its choices."""
        return orjson.dumps(self._common(self.shape.chunk_object))[:-1]

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def _usage(self) -> dict[str, Any]:
        generation = self.generation
        prompt, completion, cached = generation.prompt_tokens, generation.completion_tokens, generation.cached_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": generation.reasoning_tokens},
            "prompt_cache_hit_tokens": cached,
            "prompt_cache_miss_tokens": prompt - cached,
        }
