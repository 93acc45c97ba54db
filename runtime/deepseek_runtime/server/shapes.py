"""The two ways to write a choice: as a chat message, and as plain text, each with its own form of log-probabilities."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.engine.sequence import FinishReason
from deepseek_runtime.server.generation import Piece
from deepseek_runtime.text.parser import Content, Part, Reasoning, ToolArguments, ToolCall
from deepseek_runtime.text.tokenizer import Tokenizer

Fields = dict[str, Any]


class Shape(Protocol):
    """How one of the two APIs writes a choice."""

    prefix: str
    whole_object: str
    chunk_object: str

    def opening(self, choice: int) -> list[Fields]:
        """What a stream says of a choice before anything is generated."""
        ...

    def whole(self, piece: Piece) -> Fields:
        """A finished choice."""
        ...

    def chunks(self, piece: Piece) -> list[Fields]:
        """A piece of a choice in a stream, in one chunk or several."""
        ...


@dataclass(frozen=True, slots=True)
class Calling:
    """How a request's calls are told: `named` where the client named the one to make, `legacy` as `function_call`."""

    named: bool = False
    legacy: bool = False


def finish_reason(piece: Piece, *, called: bool, calling: Calling) -> str | None:
    """Why a choice ended, in the API's words: the same table for streams and whole answers.

    | ended by | no call | a call | a call that the client named |
    |---|---|---|---|
    | an end token, or a grammar that is complete | stop | tool_calls (legacy: function_call) | stop |
    | a stop string | stop | stop | stop |
    | `max_tokens` or the context | length | length | length |
    """
    reason = piece.finish_reason
    if reason is not FinishReason.STOP or not called or calling.named or piece.stop:
        return reason
    return "function_call" if calling.legacy else "tool_calls"


class ChatShape:
    """`chat.completion` and its chunks. One for each answer: it remembers which choices made calls."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool, calling: Calling = Calling()) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._calling = calling
        self._called: set[int] = set()

    def opening(self, choice: int) -> list[Fields]:
        return [_choice(choice, "delta", {"role": "assistant", "content": ""})]

    def whole(self, piece: Piece) -> Fields:
        self._note(piece)
        return _choice(piece.choice, "message", self._message(piece.parts)) | self._ending(piece)

    def chunks(self, piece: Piece) -> list[Fields]:
        """One chunk for each change between reasoning, content and the calls; the last has what the piece ends with."""
        self._note(piece)
        deltas = self._deltas(piece.parts) or [{}]
        chunks = [_choice(piece.choice, "delta", delta) for delta in deltas]
        chunks[-1] |= self._ending(piece)
        return chunks

    def _note(self, piece: Piece) -> None:
        if any(isinstance(part, ToolCall) for part in piece.parts):
            self._called.add(piece.choice)

    def _ending(self, piece: Piece) -> Fields:
        reason = finish_reason(piece, called=piece.choice in self._called, calling=self._calling)
        entries = {"content": [self._entry(token) for token in piece.tokens]} if self._logprobs else None
        return {"logprobs": entries, "finish_reason": reason}

    def _message(self, parts: Sequence[Part]) -> Fields:
        reasoning, content = _text(parts, Reasoning), _text(parts, Content)
        calls = _calls(parts)
        message: Fields = {"role": "assistant", "content": content or (None if reasoning or calls else "")}
        if reasoning:
            message |= _reasoning(reasoning)
        if calls and self._calling.legacy:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        return message

    def _deltas(self, parts: Sequence[Part]) -> list[Fields]:
        return [self._delta(part) for part in _merged(parts)]

    def _delta(self, part: Part) -> Fields:
        match part:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return _reasoning(text)
            case ToolCall(index, name):
                function = {"name": name, "arguments": ""}
                new = {"index": index, "id": _call_id(), "type": "function", "function": function}
            case ToolArguments(index, text):
                function = {"arguments": text}
                new = {"index": index, "function": function}
        return {"function_call": function} if self._calling.legacy else {"tool_calls": [new]}

    def _entry(self, sampled: Sampled) -> Fields:
        alternatives = [self._token(id_, logprob) for id_, logprob in sampled.alternatives]
        return self._token(sampled.token, sampled.logprob) | {"top_logprobs": alternatives}

    def _token(self, id_: int, logprob: float | None) -> Fields:
        real = self._tokenizer.token_bytes(id_)
        return {"token": self._tokenizer.token_text(id_), "logprob": logprob, "bytes": list(real)}


class CompletionShape:
    """`text_completion`, the same object whole and in chunks. `echoes` are the prompts to say first, by choice."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool, echoes: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._echoes = echoes

    def opening(self, choice: int) -> list[Fields]:
        """The echo, where it was asked for: plain text has no opening of its own."""
        return [self._fields(choice, self._echoes[choice])] if self._echoes else []

    def whole(self, piece: Piece) -> Fields:
        echo = self._echoes[piece.choice] if self._echoes else ""
        return self._fields(piece.choice, echo + piece.text) | self._ending(piece)

    def chunks(self, piece: Piece) -> list[Fields]:
        return [self._fields(piece.choice, piece.text) | self._ending(piece)]

    def _fields(self, choice: int, text: str) -> Fields:
        return {"index": choice, "text": text, "logprobs": None, "finish_reason": None}

    def _ending(self, piece: Piece) -> Fields:
        entries = self._entries(piece.tokens) if self._logprobs else None
        return {"logprobs": entries, "finish_reason": piece.finish_reason}

    def _entries(self, tokens: tuple[Sampled, ...]) -> Fields:
        name = self._tokenizer.token_text
        return {
            "tokens": [name(sampled.token) for sampled in tokens],
            "token_logprobs": [sampled.logprob for sampled in tokens],
            "top_logprobs": [{name(id_): value for id_, value in sampled.alternatives} for sampled in tokens],
        }


def _choice(index: int, key: str, content: Fields) -> Fields:
    return {"index": index, key: content, "logprobs": None, "finish_reason": None}


def _reasoning(text: str) -> Fields:
    """Reasoning under DeepSeek's name and under the one that newer servers use."""
    return {"reasoning_content": text, "reasoning": text}


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _text(parts: Iterable[Part], kind: type[Reasoning] | type[Content]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


def _calls(parts: Iterable[Part]) -> list[Fields]:
    calls: list[Fields] = []
    for part in parts:
        if isinstance(part, ToolCall):
            calls.append({"id": _call_id(), "type": "function", "function": {"name": part.name, "arguments": ""}})
        elif isinstance(part, ToolArguments):
            calls[part.index]["function"]["arguments"] += part.text
    return calls


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Neighbours of one kind made one; a call's name never shares a delta with its arguments."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        match last, part:
            case (Content(a), Content(b)):
                merged[-1] = Content(a + b)
            case (Reasoning(a), Reasoning(b)):
                merged[-1] = Reasoning(a + b)
            case (ToolArguments(i, a), ToolArguments(j, b)) if i == j:
                merged[-1] = ToolArguments(i, a + b)
            case _:
                merged.append(part)
    return merged
