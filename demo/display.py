"""What a person sees of the demo: one line a step with its time, and a moving line for what takes long."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cluster_access import ClusterAccessError

_LOG_LINES = 15


class Display:
    """Writes to the terminal; without one, the moving lines are left out."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._live: Live | None = None
        self._title = ""
        self._step_started = 0.0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time what happens inside and say so when it is done; what is printed meanwhile is its progress."""
        self._title, self._step_started = title, time.monotonic()
        printed = _Lines(self.progress)
        with Live(console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False) as live:
            self._live = live
            live.update(self._moving())
            try:
                with redirect_stdout(printed), redirect_stderr(printed):
                    yield
            finally:
                self._live = None
        self.done(title, time.monotonic() - self._step_started)

    def progress(self, text: str) -> None:
        """Say what the current step is at."""
        if self._live is not None:
            self._live.update(self._moving(text))

    def done(self, title: str, seconds: float, *, good: bool = True) -> None:
        """One finished step."""
        mark, colour = ("✓", "green") if good else ("✗", "red")
        total = time.monotonic() - self._started
        self._console.print(
            Text(f"{mark} ", style=colour) + Text(f"{title}  ") + Text(f"{seconds:.1f} s (at {total:.0f} s)", "dim")
        )

    def show(self, text: str, *, columns: int | None = None) -> None:
        """Print what a command said, indented; of a table, the first columns only."""
        for line in text.rstrip().splitlines():
            self._console.print(Text("    " + (_first_columns(line, columns) if columns else line)))

    def stream(self, command: Sequence[str]) -> str:
        """Run a command and show its output letter by letter as it comes; return all of it."""
        said = ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            self._console.print("    ", end="")
            while letter := process.stdout.read(1):
                said += letter
                self._console.print(letter.replace("\n", "\n    "), end="", markup=False)
        self._console.print()
        return said

    def failed(self, sentence: str) -> None:
        """The sentence that says what went wrong and what to do."""
        self._console.print(Text(f"✗ {sentence}", style="red"))

    def together(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Run commands side by side, each with its last output line as progress; raises ClusterAccessError."""
        jobs = [_Job(title, command) for title, command in commands.items()]
        with Live(console=self._console, transient=True, refresh_per_second=4) as live:
            while any(job.running for job in jobs):
                live.update(Text("\n").join(job.line() for job in jobs if job.running))
                time.sleep(0.25)
        for job in jobs:
            self.done(job.title, job.seconds, good=job.succeeded)
        for job in jobs:
            if not job.succeeded:
                raise ClusterAccessError(f"{job.title} failed:\n" + "\n".join(job.output[-_LOG_LINES:]))

    def _moving(self, text: str = "") -> Text:
        waited = time.monotonic() - self._step_started
        return Text(f"… {self._title}  {waited:.0f} s  {text}", no_wrap=True, overflow="ellipsis")


def _first_columns(line: str, count: int) -> str:
    """The first columns of a kubectl table, whose columns stand at least two spaces apart."""
    parts: list[str] = []
    rest = line
    while rest and len(parts) < count:
        cell, gap, after = rest.partition("  ")
        spaces = len(after) - len(after.lstrip(" "))
        parts.append(cell + gap + " " * spaces)
        rest = after.lstrip(" ")
    return "".join(parts).rstrip()


class _Lines(io.TextIOBase):
    """A stream whose lines go to a function."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def write(self, text: str) -> int:
        for line in filter(None, (part.strip() for part in text.replace("\r", "\n").splitlines())):
            self._tell(line)
        return len(text)


class _Job:
    """A command in the background, its output kept."""

    def __init__(self, title: str, command: Sequence[str]) -> None:
        self.title = title
        self.output: list[str] = []
        self._started = time.monotonic()
        self._ended = 0.0
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.output.extend(line.rstrip() for line in iter(self._process.stdout.readline, ""))
        self._process.wait()
        self._ended = time.monotonic()

    @property
    def running(self) -> bool:
        return self._ended == 0.0

    @property
    def succeeded(self) -> bool:
        return self._process.returncode == 0

    @property
    def seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._started

    def line(self) -> Text:
        last = self.output[-1] if self.output else ""
        return Text(f"… {self.title}  {self.seconds:.0f} s  {last}", no_wrap=True, overflow="ellipsis")
