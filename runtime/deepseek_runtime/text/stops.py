"""Stop strings in a stream: what may be the beginning of one is held back until it is decided."""

from __future__ import annotations

from collections.abc import Sequence


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
        if found := self._first(text):
            position, self.matched = found
            self._held = ""
            return text[: position + len(self.matched)] if self._include else text[:position]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        """The stop string that begins first; of two at one place the longer."""
        found = [(position, -len(stop), stop) for stop in self._stops if (position := text.find(stop)) >= 0]
        return (min(found)[0], min(found)[2]) if found else None

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        ends = range(min(longest, len(text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
