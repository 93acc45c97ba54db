"""What the runtime has to reach, and by how much a session shows that it does."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.yardstick.results import ROOFLINE, Results, ThreadFigures
from benchmarks.yardstick.workload import decode_cell, prefill_cell


@dataclass(frozen=True, slots=True)
class Check:
    """`value` of something, to be at least `goal`, or at most where `limit` is set."""

    what: str
    value: float
    goal: float
    limit: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.goal if self.limit else self.value >= self.goal


def checks(results: Results) -> list[Check]:
    """Every target for which there are figures."""
    found = [check for part in results.threads for check in _speed(results, part)]
    return [*found, *_memory(results), *_loading(results), *_context(results)]


def _speed(results: Results, part: ThreadFigures) -> Iterator[Check]:
    ratios = part.ratios(results.own, results.peers)
    goals = [
        (decode_cell(1), f"ours/{ROOFLINE}", 0.8),
        (decode_cell(1), "ours/llama", 1.0),
        *((decode_cell(batch), "ours/best peer", 1.2) for batch in (8, 16)),
        *((prefill_cell(length), "ours/best peer", 1.2) for length in (512, 2048)),
        (decode_cell(1), "ours-fp8/llama", 1.5),
    ]
    for cell, ratio, goal in goals:
        if ratio in ratios.get(cell, {}):
            yield Check(f"{cell.replace('_', ' ')}, {part.threads} threads: {ratio}", ratios[cell][ratio], goal)


def _memory(results: Results) -> Iterator[Check]:
    for name, loading in results.loading.items():
        peak, held = loading["rss_loaded"], loading["bytes_held"]
        yield Check(f"loading {name}: peak memory over its weights", peak / held, 1.15, limit=True)
        added = peak - loading["rss_before_load"]
        yield Check(f"loading {name}: the same without Python and torch", added / held, 1.1, limit=True)


def _loading(results: Results) -> Iterator[Check]:
    for name, loading in results.loading.items():
        for source in ("disk", "cache"):
            ratio = max(loading[f"load_{source}"]) / max(loading[f"read_{source}"])
            yield Check(f"loading of {name} over a plain read from {source}", ratio, 0.8)


def _context(results: Results) -> Iterator[Check]:
    if results.context_s:
        (short, first), *_, (long, last) = results.context_s.items()
        yield Check(f"a token behind {long} tokens over one behind {short}", last / first, 1.15, limit=True)
