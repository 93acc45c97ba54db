"""From pieces to an answer, whole or streamed, in the words of whichever API has a writer for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from starlette.responses import Response

from deepseek_runtime.engine.sequence import FinishReason
from deepseek_runtime.server.errors import ApiError
from deepseek_runtime.server.generation import Generation, Piece
from deepseek_runtime.server.layers.blocks import Block, Blocks, Change
from deepseek_runtime.server.responses import EventStream, Framing, json_response

Fields = dict[str, Any]
"""A JSON object. As an event of a stream it has a `type`, which is the event's name too."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens; those `cached` are part of the prompt, those of the `reasoning` of the completion."""

    prompt: int
    completion: int
    cached: int
    reasoning: int

    @classmethod
    def of(cls, generation: Generation) -> Usage:
        """What is used up by now."""
        return cls(
            generation.prompt_tokens,
            generation.completion_tokens,
            generation.cached_tokens,
            generation.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an answer is over: at its end, at a stop string, or because it was `cut` by a limit of tokens."""

    cut: bool
    stop: str | None
    called: bool


class Writer(Protocol):
    """Writes one answer as an API has it; knows what the request said."""

    idle: bytes

    def opening(self, usage: Usage) -> list[Fields]:
        """Events before anything is generated."""
        ...

    def change(self, change: Change) -> list[Fields]:
        """Events for what is new."""
        ...

    def closing(self, blocks: Sequence[Block], ending: Ending, usage: Usage) -> list[Fields]:
        """Events behind everything that was generated."""
        ...

    def failure(self, blocks: Sequence[Block], error: ApiError, usage: Usage) -> list[Fields]:
        """Events in place of everything that was to come."""
        ...

    def whole(self, blocks: Sequence[Block], ending: Ending, usage: Usage) -> Fields:
        """The same answer without a stream."""
        ...


class Delivery:
    """One answer of one choice on its way to the client."""

    def __init__(self, writer: Writer, generation: Generation) -> None:
        self._writer = writer
        self._generation = generation
        self._blocks = Blocks()
        self._ending = Ending(cut=False, stop=None, called=False)

    async def respond(self, *, stream: bool) -> Response:
        """The answer, as a stream or when it is complete."""
        if not stream:
            return await self._whole()
        framing = Framing(done=b"", idle=self._writer.idle, failure=self._failure)
        generation = self._generation
        return EventStream(self._frames(), generation.close, framing=framing, patience=generation.send_timeout)

    async def _whole(self) -> Response:
        try:
            async with aclosing(self._generation.pieces()) as stream:
                async for piece in stream:
                    if piece:
                        self._take(piece)
        finally:
            self._generation.close()
        return json_response(self._writer.whole(self._blocks.all, self._ending, self._usage))

    async def _frames(self) -> AsyncGenerator[bytes | None, None]:
        yield _frames(self._writer.opening(self._usage))
        async with aclosing(self._generation.pieces()) as stream:
            async for piece in stream:
                changes = self._take(piece) if piece else None
                if changes is None:
                    yield None
                elif changes:
                    yield _frames(event for change in changes for event in self._writer.change(change))
        yield _frames(self._writer.closing(self._blocks.all, self._ending, self._usage))

    def _take(self, piece: Piece) -> list[Change]:
        changes = self._blocks.take(piece.parts)
        if piece.finish_reason is None:
            return changes
        cut = piece.finish_reason is not FinishReason.STOP
        changes += self._blocks.finish(cut=cut)
        self._ending = Ending(cut, piece.stop, self._blocks.called)
        return changes

    def _failure(self, error: ApiError) -> bytes:
        return _frames(self._writer.failure(self._blocks.all, error, self._usage))

    @property
    def _usage(self) -> Usage:
        return Usage.of(self._generation)


def _frames(events: Iterable[Fields]) -> bytes:
    """Events as server-sent events that have names."""
    return b"".join(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)
