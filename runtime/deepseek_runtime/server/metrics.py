"""Prometheus metrics under names of our own, and the `vllm:` names that gateways and dashboards read by default."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepseek_runtime.engine.engine import EngineStats
from deepseek_runtime.engine.speculation import Speculation
from deepseek_runtime.health import Health

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5, 10, 20, 40, 80, 160, 640, 2560)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80)
_WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480, 960, 1920, 7680)


class _Pair:
    """One figure under two names. The alias carries the labels that vLLM's dashboards select by."""

    def __init__(self, kind: type[Counter] | type[Histogram], own: str, alias: str, text: str, **options: Any) -> None:
        registry, model = options.pop("registry"), options.pop("model")
        extra = options.pop("labels", ())
        self._own = kind(f"dsv3_{own}", text, extra, registry=registry, **options)
        self._alias = kind(f"vllm:{alias}", text, ("model_name", "engine", *extra), registry=registry, **options)
        self._model = model
        self._extra = extra

    def add(self, value: float, *labels: str) -> None:
        """Count, or observe, a value under both names."""
        for metric in self._series(labels):
            if isinstance(metric, Histogram):
                metric.observe(value)
            else:
                metric.inc(value)

    def _series(self, labels: tuple[str, ...]) -> Iterator[Counter | Histogram]:
        yield self._own.labels(*labels) if self._extra else self._own
        yield self._alias.labels(self._model, "0", *labels)


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self.prompt_tokens = self._pair(Counter, "prompt_tokens", "prompt_tokens", "Tokens of prompts accepted")
        self.generated_tokens = self._pair(
            Counter, "generation_tokens", "generation_tokens", "Tokens generated for clients"
        )
        self.first_token = self._pair(
            Histogram, "time_to_first_token_seconds", "time_to_first_token_seconds",
            "From a request's arrival to its first token", buckets=_FIRST_TOKEN,
        )  # fmt: skip
        self.next_token = self._pair(
            Histogram, "inter_token_latency_seconds", "inter_token_latency_seconds",
            "Between two tokens of a sequence", buckets=_PER_TOKEN,
        )  # fmt: skip
        self.latency = self._pair(
            Histogram, "request_seconds", "e2e_request_latency_seconds",
            "From a request's arrival to its end", buckets=_WHOLE,
        )  # fmt: skip
        self.finished = self._pair(
            Counter, "requests_finished", "request_success",
            "Sequences ended, by reason", labels=("finished_reason",),
        )  # fmt: skip
        self.rejected = Counter(
            "dsv3_requests_rejected", "Requests refused, by code of the error", ("code",), registry=self.registry
        )

    def watch(self, stats: Callable[[], EngineStats | None], health: Health) -> None:
        """Read gauges from the engine and the rank's health whenever somebody looks."""
        self.registry.register(_Gauges(stats, health, self._model))

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _pair(self, kind: type[Counter] | type[Histogram], own: str, alias: str, text: str, **options: Any) -> _Pair:
        return _Pair(kind, own, alias, text, registry=self.registry, model=self._model, **options)


class _Gauges(Collector):
    def __init__(self, stats: Callable[[], EngineStats | None], health: Health, model: str) -> None:
        self._stats = stats
        self._health = health
        self._labels = {"model_name": model, "engine": "0"}

    def collect(self) -> Iterable[Metric]:
        yield _gauge("dsv3_ready", "1 while new requests are welcome", float(self._health.ready().ok))
        yield _gauge("dsv3_ranks", "Ranks of the group", float(self._health.world_size))
        yield _gauge("dsv3_load_progress", "Share of this rank's weights that is loaded", self._health.progress)
        if stats := self._stats():
            yield from self._engine(stats)

    def _engine(self, stats: EngineStats) -> Iterator[Metric]:
        yield from self._both(GaugeMetricFamily, (
            ("requests_running", "num_requests_running", "Sequences in the batch", stats.running),
            ("requests_waiting", "num_requests_waiting", "Sequences in the queue", stats.waiting),
            ("cache_usage", "kv_cache_usage_perc", "Share of cache blocks in use, 0 to 1", stats.cache_usage),
        ))  # fmt: skip
        yield from self._both(CounterMetricFamily, (
            ("preemptions", "num_preemptions", "Sequences put back for want of blocks", stats.preemptions),
            ("prefix_cache_queries", "prefix_cache_queries", "Tokens looked up in the prefix cache",
             stats.prefix_queries),
            ("prefix_cache_hits", "prefix_cache_hits", "Tokens found in the prefix cache", stats.prefix_hits),
        ))  # fmt: skip
        yield CounterMetricFamily(
            "dsv3_prefix_cache_evictions", "Known blocks emptied for other tokens", value=stats.prefix_evictions
        )
        yield _gauge("dsv3_last_step_age_seconds", "Time since the group last proved progress", stats.step_age)
        yield CounterMetricFamily("dsv3_steps", "Steps with work", value=stats.steps)
        yield from self._speculation(stats.speculation)

    def _speculation(self, counts: Speculation) -> Iterator[Metric]:
        """Acceptance by position; and tokens per forward, the quotient of two counters."""
        forwards = "Forward passes of single sequences that ended in new tokens"
        yield CounterMetricFamily("dsv3_sequence_forwards", forwards, value=counts.forwards)
        yield CounterMetricFamily(
            "dsv3_sequence_tokens", "New tokens that these passes made certain", value=counts.tokens
        )
        drafted, accepted = "Tokens drafted by the MTP layer and verified", "Drafted tokens that were accepted"
        yield _by_position("dsv3_spec_decode_num_draft_tokens", drafted, counts.drafted, {})
        yield _by_position("dsv3_spec_decode_num_accepted_tokens", accepted, counts.accepted, {})
        alias = "vllm:spec_decode_num_accepted_tokens_per_pos"
        yield _by_position(alias, accepted, counts.accepted, self._labels)
        for name, text, value in (
            ("num_drafts", "Sequences of all steps that had drafts to verify", sum(counts.drafted[:1])),
            ("num_draft_tokens", drafted, sum(counts.drafted)),
            ("num_accepted_tokens", accepted, sum(counts.accepted)),
        ):
            yield self._alias(CounterMetricFamily, f"spec_decode_{name}", text, value)

    def _both(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        figures: Iterable[tuple[str, str, str, float]],
    ) -> Iterator[Metric]:
        """Figures of (own name, alias, text, value) under both names."""
        for own, alias, text, value in figures:
            yield kind(f"dsv3_{own}", text, value=value)
            yield self._alias(kind, alias, text, value)

    def _alias(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, value: float
    ) -> Metric:
        family = kind(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family


def _by_position(name: str, text: str, values: Sequence[int], labels: Mapping[str, str]) -> Metric:
    """A counter for each place in a draft, the first being 0."""
    family = CounterMetricFamily(name, text, labels=[*labels, "position"])
    for position, value in enumerate(values):
        family.add_metric([*labels.values(), str(position)], value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
