"""Stop strings in a stream: what may be the beginning of one is held back until it is decided."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

NEVER = r"(?!)"


class Finder:
    """Looks for some strings in text that comes in pieces. Text without their first letters costs next to nothing."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = tuple(wanted)
        self._longest = max(map(len, wanted), default=0)
        by_length = sorted(wanted, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, by_length)) or NEVER)
        self._initial = re.compile("|".join(sorted({re.escape(one[0]) for one in wanted})) or NEVER)

    def first(self, text: str) -> tuple[int, str] | None:
        """Where the first of the strings begins, and which it is; of two at one place the longer."""
        found = self._whole.search(text)
        return (found.start(), found.group()) if found else None

    def undecided(self, text: str) -> int:
        """Length of the longest end of `text` that may yet become one of the strings, 0 if there is none."""
        start = max(len(text) - self._longest + 1, 0)
        for initial in self._initial.finditer(text, start):
            tail = text[initial.start() :]
            if any(one.startswith(tail) for one in self._wanted):
                return len(tail)
        return 0


class StopMatcher:
    """Passes text on until the first stop string, which ends it and is left out unless `include` is set."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._finder = Finder(stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, watch: bool = True) -> str:
        """The part of everything held and `text` that can be shown now. Unless `watch`, `text` completes no stop."""
        if self.matched is not None:
            return ""
        text = self._held + text
        if watch and (found := self._finder.first(text)):
            position, self.matched = found
            self._held = ""
            return text[: position + len(self.matched)] if self._include else text[:position]
        keep = self._finder.undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held
