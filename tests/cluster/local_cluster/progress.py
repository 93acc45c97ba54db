"""Progress for people: one line that is rewritten on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

_QUIET_SECONDS = 20.0


class Progress:
    """`with Progress("Compiling X") as p: p.show("3/10")`; the end prints what was done and how long it took."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._shown = self._started
        self._terminal = sys.stderr.isatty()
        self._outcome = "done"

    def __enter__(self) -> "Progress":
        self._line("…")
        return self

    def show(self, detail: str) -> None:
        """Say how far it is; in a log, at most one line every 20 seconds."""
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else _QUIET_SECONDS):
            self._shown = now
            self._line(f"{detail}  {_duration(now - self._started)}")

    def note(self, outcome: str) -> None:
        """Say at the end `outcome` instead of "done"."""
        self._outcome = outcome

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        outcome = self._outcome if kind is None else "failed"
        self._line(f"{outcome}, {_duration(time.monotonic() - self._started)}")
        if self._terminal:
            sys.stderr.write("\n")

    def _line(self, text: str) -> None:
        line = f"{self._title}: {text}"
        sys.stderr.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
