"""Text as it is generated: whole characters only, each once."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Set

from tokenizers.decoders import DecodeStream

from deepseek_runtime.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns tokens into text one by one, holding back bytes until they make a character.

    Special tokens are dropped, except those whose text is in `keep`: the markers that a parser reads.
    """

    def __init__(self, tokenizer: Tokenizer, *, keep: Set[str] = frozenset()) -> None:
        self._hidden = tokenizer.hidden_ids
        self._kept = {tokenizer.special_ids[text] for text in keep if text in tokenizer.special_ids}
        self._step = _by_bytes(tokenizer) if tokenizer.byte_level else _by_library(tokenizer)

    def push(self, token: int) -> str:
        """The text that this token completes, often empty in the middle of a character."""
        return "" if token in self._hidden and token not in self._kept else self._step(token)


def _by_bytes(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Every token stands for some bytes, whatever is around it. Bytes that can be no character become U+FFFD."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    return lambda token: decode(tokenizer.token_bytes(token))


def _by_library(tokenizer: Tokenizer) -> Callable[[int], str]:
    """A token's text depends on those before it, as with tokens that stand for words with their space."""
    stream = DecodeStream(skip_special_tokens=False)
    return lambda token: stream.step(tokenizer.fast, token) or ""
