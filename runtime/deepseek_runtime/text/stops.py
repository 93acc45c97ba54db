"""Stop strings in a stream: what may be the beginning of one is held back until it is decided."""

from __future__ import annotations

from collections.abc import Sequence


def first(text: str, wanted: Sequence[str]) -> tuple[int, str] | None:
    """Where the first of some strings begins, and which it is; of two at one place the longer."""
    found = [(position, -len(one), one) for one in wanted if (position := text.find(one)) >= 0]
    return (min(found)[0], min(found)[2]) if found else None


def undecided(text: str, wanted: Sequence[str]) -> int:
    """Length of the longest end of `text` that may yet become one of some strings, 0 if there is none."""
    longest = max(map(len, wanted), default=1) - 1
    ends = range(min(longest, len(text)), 0, -1)
    return next((n for n in ends if any(one.startswith(text[-n:]) for one in wanted)), 0)


class StopMatcher:
    """Passes text on until the first stop string, which ends it and is left out unless `include` is set."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The part of everything held and `text` that can be shown now."""
        if self.matched is not None:
            return ""
        text = self._held + text
        if found := first(text, self._stops):
            position, self.matched = found
            self._held = ""
            return text[: position + len(self.matched)] if self._include else text[:position]
        keep = undecided(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held
