"""What a level of load says: a summary in numbers, a table for people, a chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from rich.table import Table

from deepseek_runtime.client.load import Answer, Level
from deepseek_runtime.client.plot import Panel, chart

SHARES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one level; latencies in milliseconds by percentile.

    `ttft_ms` is from a request to its first text, `itl_ms` the time per token between two pieces of text of an answer,
    `e2e_ms` from a request to the answer's end. Throughput counts answers that came whole.
    """

    concurrency: int
    answers: int
    failed: int
    seconds: float
    prompt_tokens: float
    output_tokens: float
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    ttft_ms: Mapping[str, float]
    itl_ms: Mapping[str, float]
    e2e_ms: Mapping[str, float]
    errors: Mapping[str, int]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarise(level: Level) -> Summary:
    """The figures of a level."""
    whole = [answer for answer in level.answers if answer.error is None]
    spoken = [answer for answer in whole if answer.pieces]
    output = sum(answer.output_tokens for answer in whole)
    prompt = sum(answer.prompt_tokens for answer in whole)
    return Summary(
        concurrency=level.concurrency,
        answers=len(whole),
        failed=len(level.answers) - len(whole),
        seconds=level.seconds,
        prompt_tokens=prompt / max(len(whole), 1),
        output_tokens=output / max(len(whole), 1),
        requests_per_second=len(whole) / level.seconds,
        output_tokens_per_second=output / level.seconds,
        total_tokens_per_second=(output + prompt) / level.seconds,
        ttft_ms=_percentiles([answer.pieces[0] - answer.sent for answer in spoken]),
        itl_ms=_percentiles([gap for answer in spoken for gap in _gaps(answer)]),
        e2e_ms=_percentiles([answer.ended - answer.sent for answer in whole]),
        errors=dict(Counter(answer.error for answer in level.answers if answer.error is not None)),
    )


def _gaps(answer: Answer) -> list[float]:
    """Time per token between pieces, of which each behind the first is taken to bring as many tokens as the others."""
    pieces = len(answer.pieces) - 1
    tokens = max((answer.output_tokens - 1) / pieces, 1.0) if pieces > 0 else 1.0
    return [(later - earlier) / tokens for earlier, later in pairwise(answer.pieces)]


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds, by names such as `p50`; empty without any value."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {f"p{share}": round(1000 * _at(ordered, share / 100), 3) for share in SHARES}


def _at(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of all lie, interpolated between the two next to it."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def table(summaries: Sequence[Summary]) -> Table:
    """A row for each level."""
    result = Table(title="Milliseconds at p50 / p90 / p99", title_justify="left")
    for name in (
        "clients",
        "answers",
        "failed",
        "tokens/s out",
        "requests/s",
        "first token",
        "between tokens",
        "whole",
    ):
        result.add_column(name, justify="right", no_wrap=True)
    for line in summaries:
        latencies = [_cell(values) for values in (line.ttft_ms, line.itl_ms, line.e2e_ms)]
        counts = [str(line.concurrency), str(line.answers), str(line.failed)]
        result.add_row(*counts, f"{line.output_tokens_per_second:.1f}", f"{line.requests_per_second:.2f}", *latencies)
    return result


def _cell(values: Mapping[str, float]) -> str:
    return " / ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values.values()) or "–"


def plot(summaries: Sequence[Summary]) -> str:
    """Throughput and latencies over the number of clients, as SVG."""
    labels = [str(line.concurrency) for line in summaries]
    panels = [Panel("output tokens/s", labels, {"tokens/s": [line.output_tokens_per_second for line in summaries]})]
    for title, name in (("first token, ms", "ttft_ms"), ("between tokens, ms", "itl_ms")):
        values = {share: [getattr(line, name).get(share) for line in summaries] for share in ("p50", "p99")}
        panels.append(Panel(title, labels, values))
    return chart(panels, "clients", ())
