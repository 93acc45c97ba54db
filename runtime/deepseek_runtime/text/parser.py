"""Generated text taken apart while it comes: reasoning, content, tool calls.

A marker of the dialect is never shown, not even the beginning of one, and how the text is cut into pieces does not
matter: every state acts on all that is held, and keeps what could still turn out to be a marker.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from deepseek_runtime.text.dialect import Dialect
from deepseek_runtime.text.stops import Finder


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The beginning of a call; the first of a turn has index 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """More of a call's arguments; put together they are the JSON text that the model wrote."""

    index: int
    text: str


Part = Reasoning | Content | ToolCall | ToolArguments


def _as_it_is(text: str) -> str:
    return text


def _without_line_breaks(text: str) -> str:
    return text.rstrip("\n")


def _without_fence(text: str) -> str:
    """Arguments without what closes their fenced block, complete or not."""
    return text.rstrip().rstrip("`").rstrip()


def _without_fence_line(text: str) -> str:
    """The same where no marker followed: a fence is then only what stands on a line of its own."""
    closing = text[len(_without_fence(text)) :]
    return text.removesuffix(closing) if "`" in closing and closing.lstrip(" ").startswith("\n") else text


_State = Callable[[bool], bool]
_FENCE = re.compile(r"```\w*\s*(?=[^\w\s])")
_FENCE_SO_FAR = re.compile(r"`{0,3}|```\w*\s*")


class OutputParser:
    """Parts of one answer. With `tools` False, tool markers are content like any other text.

    `in_reasoning` says that the prompt ended inside of reasoning. Reasoning ends at the first `think_end`, and only
    there: what looks like a tool call before is a thought about one.
    """

    def __init__(self, dialect: Dialect, *, in_reasoning: bool, tools: bool) -> None:
        self._think_begin, self._think_end = dialect.think_begin, dialect.think_end
        self._form = dialect.tools if tools else None
        markers = self._form.markers if self._form else frozenset()
        self._markers = Finder(markers)
        self._name_end = Finder({"\n", *markers})
        self._thought_end = Finder({self._think_end} - {""})
        self._in_reasoning = in_reasoning
        self._state: _State = self._start if dialect.think_begin else self._content
        self._held = ""
        self._parts: list[Part] = []
        self._calls = 0

    def push(self, text: str) -> list[Part]:
        """The parts that `text` completes, often none while a marker is undecided."""
        self._held += text
        return self._run(last=False)

    def finish(self) -> list[Part]:
        """What was held back, now that no more text comes. A call whose name is incomplete is dropped."""
        return self._run(last=True)

    def _run(self, last: bool) -> list[Part]:
        while self._state(last):
            pass
        parts, self._parts = self._parts, []
        return parts

    # A state takes from the front of what is held; it returns whether the next one is to look at the rest.

    def _start(self, last: bool) -> bool:
        """Reasoning may be opened in the answer itself, or once more though the prompt has done so."""
        text = self._held.lstrip()
        if text.startswith(self._think_begin):
            self._held = text.removeprefix(self._think_begin)
            self._in_reasoning = True
        elif self._think_begin.startswith(text) and not last:
            return False
        return self._go(self._opened if self._in_reasoning else self._content)

    def _opened(self, last: bool) -> bool:
        return self._skip("\n", self._reasoning)

    def _reasoning(self, last: bool) -> bool:
        text, end = self._split(self._thought_end, last, _without_line_breaks)
        self._show(Reasoning, text)
        return bool(end) and self._go(self._answered)

    def _answered(self, last: bool) -> bool:
        return self._skip("\n", self._content)

    def _content(self, last: bool) -> bool:
        text, marker = self._split(self._markers, last)
        self._show(Content, text)
        return self._behind(marker)

    def _gap(self, last: bool) -> bool:
        return self._skip(None, self._content)

    def _head(self, last: bool) -> bool:
        """Up to the separator: a bare call's name, or a fenced one's type, which says nothing."""
        found = self._markers.first(self._held)
        if found is None:
            return False
        text, marker = self._split(self._markers, last)
        if self._form is None or marker != self._form.separator:  # no call after all
            self._show(Content, text)
            return self._behind(marker)
        if self._form.style == "fenced":
            return self._go(self._name)
        self._begin_call(text)
        return self._go(self._arguments)

    def _name(self, last: bool) -> bool:
        """A fenced call's name: the rest of the line."""
        found = self._name_end.first(self._held)
        if found is None:
            return False
        self._begin_call(self._held[: found[0]])
        self._held = self._held[found[0] :]
        return self._go(self._fence)

    def _fence(self, last: bool) -> bool:
        """The line that opens the fenced block, if there is one."""
        text = self._held.lstrip()
        if opening := _FENCE.match(text):
            text = text[opening.end() :]
        elif _FENCE_SO_FAR.fullmatch(text):
            return False
        self._held = text
        return self._go(self._arguments)

    def _arguments(self, last: bool) -> bool:
        fenced = self._form is not None and self._form.style == "fenced"
        text, marker = self._split(self._markers, last, _without_fence if fenced else _as_it_is)
        if fenced and last and not marker:
            text = _without_fence_line(text)
        if text:
            self._parts.append(ToolArguments(self._calls - 1, text))
        return self._behind(marker)

    def _behind(self, marker: str) -> bool:
        """Go on behind a tool marker: into a call, or over the white space between calls."""
        begins = self._form is not None and marker == self._form.call_begin
        return bool(marker) and self._go(self._head if begins else self._gap)

    def _go(self, state: _State) -> bool:
        self._state = state
        return True

    def _skip(self, characters: str | None, state: _State) -> bool:
        """Drop some characters (None: white space) that belong to the wire form; go on once there are others."""
        self._held = self._held.lstrip(characters)
        return bool(self._held) and self._go(state)

    def _begin_call(self, name: str) -> None:
        self._parts.append(ToolCall(self._calls, name.strip()))
        self._calls += 1

    def _show(self, kind: type[Reasoning] | type[Content], text: str) -> None:
        if text:
            self._parts.append(kind(text))

    def _split(self, markers: Finder, last: bool, trim: Callable[[str], str] = _as_it_is) -> tuple[str, str]:
        """Take the text up to the first marker and the marker, or else the text that surely belongs to none.

        `trim` takes off what may belong to the marker that follows.
        """
        held = self._held
        if found := markers.first(held):
            position, marker = found
            self._held = held[position + len(marker) :]
            return trim(held[:position]), marker
        tail = markers.undecided(held)
        if last:  # one character is likely text, more are the marker that the answer had no room for
            self._held = ""
            return held[: len(held) - tail] if tail > 1 else held, ""
        text = trim(held[: len(held) - tail])
        self._held = held[len(text) :]
        return text, ""
