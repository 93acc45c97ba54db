"""Text as it is generated: whole characters only, each once."""

from __future__ import annotations

from tokenizers.decoders import DecodeStream

from deepseek_runtime.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns tokens into text one by one, holding back bytes until they make a character. Special tokens are dropped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """The text that this token completes, often empty in the middle of a character."""
        try:
            return self._stream.step(self._tokenizer.fast, token) or ""
        except Exception:  # the library gives up on bytes that can never become a character; go on behind them
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer.fast, token) or ""
