"""Text as it is generated: whole characters only, each once."""

from __future__ import annotations

import codecs
from collections.abc import Set

from deepseek_runtime.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns tokens into text one by one, holding back bytes until they make a character.

    Special tokens are dropped, except those whose text is in `keep`: the markers that a parser reads.
    """

    def __init__(self, tokenizer: Tokenizer, *, keep: Set[str] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._dropped = {id_ for text, id_ in tokenizer.special_ids.items() if text not in keep}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this token completes, often empty in the middle of a character."""
        return "" if token in self._dropped else self._decoder.decode(self._tokenizer.token_bytes(token))
