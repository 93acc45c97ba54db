"""An answer as blocks in a row, of which one at most is open: the form that both APIs of this layer are written in."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from deepseek_runtime.text.parser import Content, Part, Reasoning, ToolArguments, ToolCall

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True, eq=False)
class Block:
    """One block so far. A call has a name, and its arguments as text. `cut` says that it ended before its time."""

    index: int
    kind: Kind
    name: str = ""
    cut: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def grow(self, text: str) -> None:
        """Take the text that comes next."""
        self._texts.append(text)


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins; it is still empty."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grown:
    """A block goes on with a text."""

    block: Block
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A block is over."""

    block: Block


Change = Opened | Grown | Closed


class Blocks:
    """Puts the parts of one choice in blocks, and tells what changed with each."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    @property
    def called(self) -> bool:
        """Whether there is a call among them."""
        return any(block.kind == "call" for block in self.all)

    def take(self, parts: Iterable[Part]) -> list[Change]:
        """What the parts change; neighbouring texts of a block come as one."""
        changes: list[Change] = []
        for part in parts:
            match part:
                case Reasoning(text):
                    changes += self._grow("reasoning", text)
                case Content(text):
                    changes += self._grow("text", text)
                case ToolCall(name=name):
                    changes += self._begin("call", name)
                case ToolArguments(text=text):
                    changes += self._grow("call", text)
        return _merged(changes)

    def finish(self, *, cut: bool) -> list[Change]:
        """Close the last block, cut or not. An answer of nothing has one empty text."""
        changes = [] if self.all else self._begin("text")
        if self._open:
            self._open.cut = cut
        return changes + self._end()

    def _begin(self, kind: Kind, name: str = "") -> list[Change]:
        changes = self._end()
        self._open = Block(len(self.all), kind, name)
        self.all.append(self._open)
        return [*changes, Opened(self._open)]

    def _grow(self, kind: Kind, text: str) -> list[Change]:
        if not text:
            return []
        changes = [] if self._open and self._open.kind == kind else self._begin(kind)
        block = self.all[-1]
        block.grow(text)
        return [*changes, Grown(block, text)]

    def _end(self) -> list[Change]:
        changes: list[Change] = [Closed(self._open)] if self._open else []
        self._open = None
        return changes


def _merged(changes: Iterable[Change]) -> list[Change]:
    merged: list[Change] = []
    for change in changes:
        last = merged[-1] if merged else None
        if isinstance(change, Grown) and isinstance(last, Grown) and last.block is change.block:
            merged[-1] = Grown(change.block, last.text + change.text)
        else:
            merged.append(change)
    return merged
