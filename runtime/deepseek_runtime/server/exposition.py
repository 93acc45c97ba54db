"""Figures in Prometheus' text format, under names of our own and under those that gateways read, many times a second.

prometheus-client writes the text; what of it never changes is kept, so that the next scrape only fills in numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString as go_string

from deepseek_runtime.engine.tally import Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OWN, ALIAS = "dsv3_", "vllm:"

Labelled = Mapping[tuple[str, ...], float]
Value = float | Labelled | Tally
"""One number; one for each combination of label values; or a histogram."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, under its own name, an alias, or both; `read` gets it from wherever figures of its kind live.

    None says that there is no such figure yet.
    """

    kind: str
    own: str
    alias: str
    text: str
    read: Callable[[Any], Value | None]
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Full names, as queries have them."""
        suffix = "_total" if self.kind == "counter" else ""
        return [prefix + name + suffix for prefix, name in ((OWN, self.own), (ALIAS, self.alias)) if name]


Read = Callable[[], Iterable[tuple[Figure, Value | None]]]


class Exposition(Collector):
    """All figures of one server as text. The aliases carry the labels that vLLM's dashboards select by."""

    def __init__(self, model: str, read: Read) -> None:
        self._read = read
        self._common = {"model_name": model, "engine": "0"}
        self._heads: list[str] = []
        self._tail = ""
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The figures as prometheus-client has them."""
        for figure, value in self._read():
            if value is not None:
                yield from self._families(figure, value)

    def render(self) -> bytes:
        """The text that prometheus-client would write, for a tenth of the time."""
        numbers = self._numbers()
        if len(numbers) != len(self._heads):  # label values and whole figures are only ever added
            self._learn()
            numbers = self._numbers()
        lines = [f"{head}{number}\n" for head, number in zip(self._heads, map(_format, numbers), strict=True)]
        return "".join((*lines, self._tail)).encode()

    def _learn(self) -> None:
        """Keep what stands before each number."""
        self._heads, comments = [], ""
        for line in generate_latest(self.registry).decode().splitlines():
            if line.startswith("#"):
                comments += f"{line}\n"
            else:
                self._heads.append(comments + line[: line.rindex(" ") + 1])
                comments = ""
        self._tail = comments

    def _numbers(self) -> list[float]:
        """All numbers in the order of the text."""
        numbers: list[float] = []
        for figure, value in self._read():
            if value is not None:
                numbers += _flat(value) * len(figure.names)
        return numbers

    def _families(self, figure: Figure, value: Value) -> Iterator[Metric]:
        if figure.own:
            yield _family(OWN + figure.own, figure, value, {})
        if figure.alias:
            yield _family(ALIAS + figure.alias, figure, value, self._common)


def _family(name: str, figure: Figure, value: Value, common: Mapping[str, str]) -> Metric:
    labels, given = [*common, *figure.labels], list(common.values())
    if isinstance(value, Tally):
        histogram = HistogramMetricFamily(name, figure.text, labels=labels)
        bounds = [*map(_format, value.bounds), "+Inf"]
        histogram.add_metric(given, list(zip(bounds, map(float, value.cumulative), strict=True)), value.total)
        return histogram
    kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    family = kind(name, figure.text, labels=labels)
    for more, number in _series(value):
        family.add_metric([*given, *more], number)
    return family


def _series(value: float | Labelled) -> Iterable[tuple[tuple[str, ...], float]]:
    return list(value.items()) if isinstance(value, Mapping) else [((), value)]


def _flat(value: Value) -> list[float]:
    if isinstance(value, Tally):
        counts = value.cumulative
        return [*counts, counts[-1], value.total]
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _format(number: float) -> str:
    """As Go writes it; the usual numbers by a shorter way."""
    return repr(float(number)) if -1e6 < number < 1e6 else str(go_string(number))  # type: ignore[no-untyped-call]
