"""The two ways to write a choice: as a chat message, and as plain text, each with its own form of log-probabilities."""

from __future__ import annotations

from typing import Any

from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.server.generation import Piece
from deepseek_runtime.text.tokenizer import Tokenizer


class ChatShape:
    """`chat.completion` and its chunks."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def opening(self, index: int) -> dict[str, Any]:
        return self._choice(index, "delta", {"role": "assistant", "content": ""})

    def whole(self, piece: Piece) -> dict[str, Any]:
        return self._of(piece, "message", {"role": "assistant", "content": piece.text})

    def part(self, piece: Piece) -> dict[str, Any]:
        return self._of(piece, "delta", {"content": piece.text} if piece.text else {})

    def _of(self, piece: Piece, key: str, content: dict[str, Any]) -> dict[str, Any]:
        entries = {"content": [self._entry(token) for token in piece.tokens]} if self._logprobs else None
        return self._choice(piece.choice, key, content) | {"logprobs": entries, "finish_reason": piece.finish_reason}

    def _choice(self, index: int, key: str, content: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, key: content, "logprobs": None, "finish_reason": None}

    def _entry(self, sampled: Sampled) -> dict[str, Any]:
        alternatives = [self._token(id_, logprob) for id_, logprob in sampled.alternatives]
        return self._token(sampled.token, sampled.logprob) | {"top_logprobs": alternatives}

    def _token(self, id_: int, logprob: float | None) -> dict[str, Any]:
        real = self._tokenizer.token_bytes(id_)
        return {"token": self._tokenizer.token_text(id_), "logprob": logprob, "bytes": list(real)}


class CompletionShape:
    """`text_completion`, the same object whole and in chunks."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def opening(self, index: int) -> None:
        """Plain text has no opening."""

    def whole(self, piece: Piece) -> dict[str, Any]:
        entries = self._entries(piece.tokens) if self._logprobs else None
        return {
            "index": piece.choice,
            "text": piece.text,
            "logprobs": entries,
            "finish_reason": piece.finish_reason,
        }

    part = whole

    def _entries(self, tokens: tuple[Sampled, ...]) -> dict[str, Any]:
        name = self._tokenizer.token_text
        return {
            "tokens": [name(sampled.token) for sampled in tokens],
            "token_logprobs": [sampled.logprob for sampled in tokens],
            "top_logprobs": [{name(id_): value for id_, value in sampled.alternatives} for sampled in tokens],
        }
