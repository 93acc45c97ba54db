"""The checkpoint's tokenizer. Every special token is found by its name in the checkpoint's own files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders


class CheckpointError(ValueError):
    """A file of the checkpoint is missing or says something that cannot be served."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


class Tokenizer:
    """Encodes and decodes text, and knows which ids begin and end it.

    `size` is one more than the highest id with a meaning: the model's vocabulary may be padded beyond it.
    `added_ids` are the tokens that are recognised by their spelling in any text, `special_ids` those among them that
    are not shown. `byte_level` says that every token stands for bytes of its own, as in all of DeepSeek's tokenizers.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file, and without it no text can be read or written")
        try:
            self.fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise CheckpointError(f"{path}: {error}") from error
        config = read_json(folder / "tokenizer_config.json")
        self.bos_token = _token_text(config.get("bos_token"))
        self.eos_token = _token_text(config.get("eos_token"))
        self.bos_id = self._id(self.bos_token, path)
        self.stop_ids = frozenset(self._stop_ids(folder, path))
        self.size = max(self.fast.get_vocab().values()) + 1
        self._bytes: dict[int, bytes] = {}
        added = self.fast.get_added_tokens_decoder()
        self.added_ids = {token.content: id_ for id_, token in added.items()}
        self.special_ids = {token.content: id_ for id_, token in added.items() if token.special}
        self.hidden_ids = frozenset(self.special_ids.values())
        self.byte_level = isinstance(self.fast.decoder, decoders.ByteLevel)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are written out; none is added."""
        return list(self.fast.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self.fast.decode(list(ids), skip_special_tokens=False))

    def token_text(self, id_: int) -> str:
        """One token as text; U+FFFD stands for bytes that are no whole character."""
        return self.decode([id_])

    def token_bytes(self, id_: int) -> bytes:
        """The bytes that one token stands for, also where they are only part of a character."""
        found = self._bytes.get(id_)
        if found is None:
            found = self._bytes[id_] = self._read_bytes(id_)
        return found

    def _read_bytes(self, id_: int) -> bytes:
        piece = self.fast.id_to_token(id_)
        if piece is None:
            return b""
        if piece in self.added_ids:
            return str(piece).encode()
        if all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return self.decode([id_]).encode()

    def _stop_ids(self, folder: Path, path: Path) -> set[int]:
        """Ends of turns: the tokenizer's end token and those that the generation and model configurations name."""
        ids = set() if self.eos_token is None else {self._id(self.eos_token, path)}
        for name in ("generation_config.json", "config.json"):
            value = read_json(folder / name).get("eos_token_id")
            ids.update(value if isinstance(value, list) else [value])
        return {id_ for id_ in ids if isinstance(id_, int)}

    def _id(self, token: str | None, path: Path) -> int | None:
        if token is None:
            return None
        id_ = self.fast.token_to_id(token)
        if id_ is None:
            raise CheckpointError(f"{path}: has no token {token!r}, which tokenizer_config.json names")
        return int(id_)


def _token_text(value: object) -> str | None:
    """A special token's text: a plain string, or an object with the string as `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in of each byte: itself where visible, else the next free one from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in visible)
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
