"""Every figure of `/metrics`: its kind, its own name, the alias that vLLM's dashboards know, and where it comes from.

docs/metrics.md describes them; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from deepseek_runtime.engine.engine import EngineStats
from deepseek_runtime.health import Health
from deepseek_runtime.server.exposition import Figure, Labelled


def _counted(name: str) -> attrgetter[Labelled]:
    return attrgetter(f"{name}.values")


def _by_position(values: Sequence[int]) -> Labelled:
    return {(str(position),): value for position, value in enumerate(values)}


def _cache_config(stats: EngineStats) -> Labelled:
    return {(str(stats.block_size), str(stats.blocks)): 1.0}


def _rank_ages(health: Health) -> Labelled:
    return {(str(rank),): age for rank, age in sorted(health.rank_ages().items())}


SERVER = (
    Figure("counter", "prompt_tokens", "prompt_tokens", "Tokens of accepted prompts", _counted("prompt_tokens")),
    Figure("counter", "generation_tokens", "generation_tokens", "Tokens generated", _counted("generated_tokens")),
    Figure(
        "counter", "requests_finished", "request_success", "Answers ended, by reason",
        _counted("finished"), ("finished_reason",),
    ),
    Figure(
        "counter", "requests_rejected", "admission_rejections", "Requests refused for want of room, by code",
        _counted("rejected"), ("code",),
    ),
    Figure("gauge", "requests_in_flight", "", "HTTP requests that are being answered", attrgetter("in_flight")),
    Figure(
        "histogram", "time_to_first_token_seconds", "time_to_first_token_seconds",
        "From a request's arrival to its first token", attrgetter("first_token"),
    ),
    Figure(
        "histogram", "inter_token_latency_seconds", "inter_token_latency_seconds",
        "Between two deliveries of tokens to a client", attrgetter("next_token"),
    ),
    Figure(
        "histogram", "request_seconds", "e2e_request_latency_seconds",
        "From a request's arrival to its end", attrgetter("latency"),
    ),
    Figure(
        "histogram", "request_queue_seconds", "request_queue_time_seconds",
        "From a request's arrival to its first step", attrgetter("queue"),
    ),
    Figure(
        "histogram", "request_prefill_seconds", "request_prefill_time_seconds",
        "From a request's first step to its first token", attrgetter("prefill"),
    ),
    Figure(
        "histogram", "request_decode_seconds", "request_decode_time_seconds",
        "From a request's first token to its last", attrgetter("decode"),
    ),
    Figure(
        "histogram", "request_inference_seconds", "request_inference_time_seconds",
        "From a request's first step to its last token", attrgetter("inference"),
    ),
    Figure(
        "histogram", "request_prompt_tokens", "request_prompt_tokens",
        "Tokens of a request's prompt", attrgetter("request_prompt_tokens"),
    ),
    Figure(
        "histogram", "request_generation_tokens", "request_generation_tokens",
        "Tokens of a request's answer", attrgetter("request_generated_tokens"),
    ),
    Figure("histogram", "request_params_n", "request_params_n", "Answers asked for at once", attrgetter("choices")),
    Figure(
        "histogram", "request_params_max_tokens", "request_params_max_tokens",
        "Tokens that an answer may have", attrgetter("max_tokens"),
    ),
)  # fmt: skip
"""Read from `server.metrics.Metrics`."""

RANKS = (
    Figure("gauge", "ready", "", "1 while new requests are welcome", lambda health: float(health.ready().ok)),
    Figure("gauge", "ranks", "", "Ranks of the group", attrgetter("world_size")),
    Figure("gauge", "load_progress", "", "Share of this rank's weights that is loaded", attrgetter("progress")),
    Figure("gauge", "load_bytes", "", "Bytes of this rank's weights that are loaded", attrgetter("loading.done")),
    Figure(
        "gauge", "load_bytes_per_second", "", "Bytes loaded a second, from the first to the newest",
        attrgetter("loading.rate"),
    ),
    Figure("gauge", "rank_age_seconds", "", "Since a rank last got further in the work", _rank_ages, ("rank",)),
)  # fmt: skip
"""Read from `health.Health`."""

ENGINE = (
    Figure("gauge", "requests_running", "num_requests_running", "Sequences in the batch", attrgetter("running")),
    Figure("gauge", "requests_waiting", "num_requests_waiting", "Sequences in the queue", attrgetter("waiting")),
    Figure(
        "gauge", "cache_usage", "kv_cache_usage_perc", "Share of cache blocks in use, 0 to 1", attrgetter("cache_usage")
    ),
    Figure(
        "gauge", "cache_tokens", "", "Tokens that the cache holds", lambda stats: stats.blocks * stats.block_size
    ),
    Figure(
        "gauge", "", "cache_config_info", "1, with the cache's shape in the labels",
        _cache_config, ("block_size", "num_gpu_blocks"),
    ),
    Figure(
        "counter", "preemptions", "num_preemptions", "Sequences put back for want of blocks", attrgetter("preemptions")
    ),
    Figure(
        "counter", "prefix_cache_queries", "prefix_cache_queries", "Tokens looked up in the prefix cache",
        attrgetter("prefix_queries"),
    ),
    Figure(
        "counter", "prefix_cache_hits", "prefix_cache_hits", "Tokens found in the prefix cache",
        attrgetter("prefix_hits"),
    ),
    Figure(
        "counter", "prefix_cache_evictions", "", "Known blocks emptied for other tokens", attrgetter("prefix_evictions")
    ),
    Figure("counter", "steps", "", "Steps with work", attrgetter("steps")),
    Figure("histogram", "step_tokens", "iteration_tokens_total", "Tokens of a step", attrgetter("step_tokens")),
    Figure("histogram", "step_seconds", "", "Time that a step takes", attrgetter("step_seconds")),
    Figure("gauge", "last_step_age_seconds", "", "Since the group last proved progress", attrgetter("step_age")),
    Figure(
        "gauge", "expert_load_imbalance", "", "Work of the busiest rank's experts over the mean",
        attrgetter("expert_load"),
    ),
    Figure(
        "counter", "corrupted_sequences", "corrupted_requests", "Sequences whose logits were no numbers",
        attrgetter("corrupted"),
    ),
    Figure(
        "counter", "sequence_forwards", "", "Passes of single sequences that ended in new tokens",
        attrgetter("speculation.forwards"),
    ),
    Figure(
        "counter", "sequence_tokens", "", "Tokens that these passes made certain", attrgetter("speculation.tokens")
    ),
    Figure(
        "counter", "spec_decode_num_draft_tokens", "", "Drafts that were verified, by place",
        lambda stats: _by_position(stats.speculation.drafted), ("position",),
    ),
    Figure(
        "counter", "spec_decode_num_accepted_tokens", "spec_decode_num_accepted_tokens_per_pos",
        "Drafts that were accepted, by place",
        lambda stats: _by_position(stats.speculation.accepted), ("position",),
    ),
    Figure(
        "counter", "", "spec_decode_num_drafts", "Sequences of all steps that had drafts to verify",
        lambda stats: sum(stats.speculation.drafted[:1]),
    ),
    Figure(
        "counter", "", "spec_decode_num_draft_tokens", "Drafts that were verified",
        lambda stats: sum(stats.speculation.drafted),
    ),
    Figure(
        "counter", "", "spec_decode_num_accepted_tokens", "Drafts that were accepted",
        lambda stats: sum(stats.speculation.accepted),
    ),
)  # fmt: skip
"""Read from `EngineStats`."""

FIGURES = (*SERVER, *RANKS, *ENGINE)
