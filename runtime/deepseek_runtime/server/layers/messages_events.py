"""Anthropic's `message` object, and the events that it is built up with."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic_core import from_json

from deepseek_runtime.server import access_log
from deepseek_runtime.server.errors import ApiError
from deepseek_runtime.server.layers.blocks import Block, Change, Closed, Grown, Opened
from deepseek_runtime.server.layers.delivery import Ending, Fields, Usage
from deepseek_runtime.server.layers.envelope import envelope
from deepseek_runtime.server.layers.messages_body import MessagesBody


class MessagesWriter:
    """Writes one `message`."""

    idle = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, body: MessagesBody) -> None:
        self._model = body.model
        self._id = f"msg_{uuid.uuid4().hex}"

    def opening(self, usage: Usage) -> list[Fields]:
        return [{"type": "message_start", "message": self._message((), None, usage)}]

    def change(self, change: Change) -> list[Fields]:
        place = {"index": change.block.index}
        match change:
            case Opened(block):
                return [{"type": "content_block_start", **place, "content_block": _empty(block)}]
            case Grown(block, text):
                return [{"type": "content_block_delta", **place, "delta": _delta(block, text)}]
            case Closed(block):
                stop = {"type": "content_block_stop", **place}
                signed = {"type": "signature_delta", "signature": _signature(block)}
                delta = {"type": "content_block_delta", **place, "delta": signed}
                return [delta, stop] if block.kind == "reasoning" else [stop]

    def closing(self, blocks: Sequence[Block], ending: Ending, usage: Usage) -> list[Fields]:
        delta = {"type": "message_delta", "delta": _stop(ending), "usage": _usage(usage)}
        return [delta, {"type": "message_stop"}]

    def failure(self, blocks: Sequence[Block], error: ApiError, usage: Usage) -> list[Fields]:
        return [envelope(error.status, error.message, access_log.current().id)]

    def whole(self, blocks: Sequence[Block], ending: Ending, usage: Usage) -> Fields:
        return self._message(blocks, ending, usage)

    def _message(self, blocks: Sequence[Block], ending: Ending | None, usage: Usage) -> Fields:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [_block(block) for block in blocks],
            **_stop(ending),
            "usage": _usage(usage),
        }


def stop_reason(ending: Ending) -> str:
    """Why a message ended, in the API's words.

    | ended by | no call | a call |
    |---|---|---|
    | an end token, or a grammar that is complete | end_turn | tool_use |
    | a stop sequence | stop_sequence | stop_sequence |
    | `max_tokens` or the context | max_tokens | max_tokens |
    """
    if ending.cut:
        return "max_tokens"
    if ending.stop is not None:
        return "stop_sequence"
    return "tool_use" if ending.called else "end_turn"


def _stop(ending: Ending | None) -> Fields:
    reason, sequence = (stop_reason(ending), ending.stop) if ending else (None, None)
    return {"stop_reason": reason, "stop_sequence": sequence}


def _block(block: Block) -> Fields:
    match block.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": block.text, "signature": _signature(block)}
        case "text":
            return {"type": "text", "text": block.text}
        case "call":
            return _call(block) | {"input": _input(block.text)}


def _empty(block: Block) -> Fields:
    match block.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            return {"type": "text", "text": ""}
        case "call":
            return _call(block) | {"input": {}}


def _delta(block: Block, text: str) -> Fields:
    match block.kind:
        case "reasoning":
            return {"type": "thinking_delta", "thinking": text}
        case "text":
            return {"type": "text_delta", "text": text}
        case "call":
            return {"type": "input_json_delta", "partial_json": text}


def _call(block: Block) -> Fields:
    return {"type": "tool_use", "id": f"toolu_{block.id[:24]}", "name": block.name}


def _input(arguments: str) -> Any:
    """Arguments as the object that they are; of those that were cut, whatever is complete."""
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return _beginning(arguments)


def _beginning(arguments: str) -> Any:
    try:
        value = from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _signature(block: Block) -> str:
    """A digest: clients send blocks back only with a signature. It proves nothing and is never checked."""
    return hashlib.sha256(block.text.encode()).hexdigest()


def _usage(usage: Usage) -> Fields:
    """`input_tokens` are those that were not in the cache."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }
