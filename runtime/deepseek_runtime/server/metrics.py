"""What the server counts, and everything that `/metrics` shows: the engine's figures and the ranks' too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deepseek_runtime.engine.engine import EngineStats
from deepseek_runtime.engine.tally import Tally
from deepseek_runtime.health import Health
from deepseek_runtime.server.exposition import Exposition, Figure, Value
from deepseek_runtime.server.figures import ENGINE, RANKS, SERVER

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5, 10, 20, 40, 80, 160, 640, 2560)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80)
_WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480, 960, 1920, 7680)
_LENGTHS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_FEW = (1, 2, 5, 10, 20)


class Counter:
    """A number that grows, or one for each combination of label values. To be counted on the event loop only."""

    __slots__ = ("values",)

    def __init__(self, *, labelled: bool = False) -> None:
        self.values: dict[tuple[str, ...], float] = {} if labelled else {(): 0.0}

    def add(self, amount: float = 1.0, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0.0) + amount


class Metrics:
    """What one server counts by itself, and its `/metrics`. Times are in seconds; each choice counts as a request."""

    def __init__(self, model: str) -> None:
        self.prompt_tokens = Counter()
        self.generated_tokens = Counter()
        self.finished = Counter(labelled=True)
        self.rejected = Counter(labelled=True)
        self.first_token = Tally(_FIRST_TOKEN)
        self.next_token = Tally(_PER_TOKEN)
        self.latency = Tally(_WHOLE)
        self.queue = Tally(_WHOLE)
        self.prefill = Tally(_WHOLE)
        self.decode = Tally(_WHOLE)
        self.inference = Tally(_WHOLE)
        self.request_prompt_tokens = Tally(_LENGTHS)
        self.request_generated_tokens = Tally(_LENGTHS)
        self.choices = Tally(_FEW)
        self.max_tokens = Tally(_LENGTHS)
        self.in_flight = 0
        self._stats: Callable[[], EngineStats | None] = lambda: None
        self._health: Health | None = None
        self._exposition = Exposition(model, self._read)

    def watch(self, stats: Callable[[], EngineStats | None], health: Health) -> None:
        """Read the engine's figures and those of the ranks whenever somebody looks."""
        self._stats = stats
        self._health = health

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return self._exposition.render()

    def _read(self) -> Iterator[tuple[Figure, Value | None]]:
        sources = ((SERVER, self), (RANKS, self._health), (ENGINE, self._stats()))
        for figures, source in sources:
            if source is not None:
                for figure in figures:
                    yield figure, figure.read(source)
