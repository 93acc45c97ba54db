"""OpenAI's `response` object, and the events that it is built up with."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from deepseek_runtime.server.errors import ApiError
from deepseek_runtime.server.layers.blocks import Block, Change, Closed, Grown, Opened
from deepseek_runtime.server.layers.delivery import Ending, Fields, Usage
from deepseek_runtime.server.layers.responses_body import ResponsesBody

_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
_PART_TYPES = {"reasoning": "reasoning_text", "text": "output_text"}


class ResponsesWriter:
    """Writes one `response`. Every event has the next sequence number."""

    idle = b": keep-alive\n\n"

    def __init__(self, body: ResponsesBody) -> None:
        self._body = body
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._sequence = 0

    def opening(self, usage: Usage) -> list[Fields]:
        response = self._response("in_progress", ())
        return [self._event(f"response.{name}", response=response) for name in ("created", "in_progress")]

    def change(self, change: Change) -> list[Fields]:
        block = change.block
        match change:
            case Opened():
                return self._opened(block)
            case Grown(text=text):
                return [self._content_event(block, "delta", delta=text)]
            case Closed():
                return self._closed(block)

    def closing(self, blocks: Sequence[Block], ending: Ending, usage: Usage) -> list[Fields]:
        whole = self.whole(blocks, ending, usage)
        return [self._event(f"response.{whole['status']}", response=whole)]

    def failure(self, blocks: Sequence[Block], error: ApiError, usage: Usage) -> list[Fields]:
        """The response as failed, and an `error` event, which clients raise that look at nothing else."""
        told = {"code": "server_error", "message": error.message}
        failed = self._response("failed", blocks, usage) | {"error": told}
        details = {"code": error.code, "message": error.message, "param": error.param}
        return [self._event("response.failed", response=failed), self._event("error", **details, **error.envelope)]

    def whole(self, blocks: Sequence[Block], ending: Ending, usage: Usage) -> Fields:
        if ending.cut:
            details = {"incomplete_details": {"reason": "max_output_tokens"}}
            return self._response("incomplete", blocks, usage) | details
        return self._response("completed", blocks, usage) | {"completed_at": int(time.time())}

    def _opened(self, block: Block) -> list[Fields]:
        item = _item(block) | {"status": "in_progress"}
        added = self._event("response.output_item.added", output_index=block.index)
        if block.kind == "call":
            return [added | {"item": item | {"arguments": ""}}]
        part = self._event("response.content_part.added", **_place(block), part=_part(block, ""))
        return [added | {"item": item | {"content": []}}, part]

    def _closed(self, block: Block) -> list[Fields]:
        key = "arguments" if block.kind == "call" else "text"
        events = [self._content_event(block, "done", **{key: block.text})]
        if block.kind != "call":
            events.append(self._event("response.content_part.done", **_place(block), part=_part(block, block.text)))
        return [*events, self._event("response.output_item.done", output_index=block.index, item=_item(block))]

    def _content_event(self, block: Block, what: str, **fields: Any) -> Fields:
        if block.kind == "call":
            place = {"item_id": _item_id(block), "output_index": block.index}
            named = {"name": block.name} if what == "done" else {}
            return self._event(f"response.function_call_arguments.{what}", **place, **named, **fields)
        extra: Fields = {"logprobs": []} if block.kind == "text" else {}
        return self._event(f"response.{_PART_TYPES[block.kind]}.{what}", **_place(block), **fields, **extra)

    def _event(self, type_: str, **fields: Any) -> Fields:
        self._sequence += 1
        return {"type": type_, "sequence_number": self._sequence - 1, **fields}

    def _response(self, status: str, blocks: Sequence[Block], usage: Usage | None = None) -> Fields:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            **_said(self._body),
            "previous_response_id": None,
            "store": False,
            "output": [_item(block) for block in blocks],
            "usage": _usage(usage) if usage else None,
        }


def _said(body: ResponsesBody) -> Fields:
    """What the request said, which the response repeats."""
    return {
        "model": body.model,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning": {"effort": body.reasoning.effort, "summary": None},
        "temperature": body.temperature,
        "text": {"format": _format(body)},
        "tool_choice": body.tool_choice,
        "tools": [tool.model_dump() for tool in body.tools],
        "top_p": body.top_p,
        "truncation": body.truncation,
    }


def _format(body: ResponsesBody) -> Fields:
    wanted = body.text.format
    schema = wanted.json_schema.model_dump(by_alias=True) if wanted.json_schema else {}
    return {"type": wanted.type, **schema}


def _item(block: Block) -> Fields:
    status = "incomplete" if block.cut else "completed"
    common = {"id": _item_id(block), "status": status}
    if block.kind == "call":
        call_id = f"call_{block.id[:24]}"
        return common | {"type": "function_call", "call_id": call_id, "name": block.name, "arguments": block.text}
    content = [_part(block, block.text)]
    if block.kind == "reasoning":
        return common | {"type": "reasoning", "summary": [], "content": content}
    return common | {"type": "message", "role": "assistant", "content": content}


def _part(block: Block, text: str) -> Fields:
    annotations: Fields = {"annotations": [], "logprobs": []} if block.kind == "text" else {}
    return {"type": _PART_TYPES[block.kind], "text": text, **annotations}


def _place(block: Block) -> Fields:
    return {"item_id": _item_id(block), "output_index": block.index, "content_index": 0}


def _item_id(block: Block) -> str:
    return f"{_PREFIXES[block.kind]}_{block.id}"


def _usage(usage: Usage) -> Fields:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
