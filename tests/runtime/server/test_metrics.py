"""What `/metrics` shows: every documented name and no other, in prometheus-client's own words, and cheaply."""

import re
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deepseek_runtime.engine.tally import Tally
from deepseek_runtime.health import Health, Phase, Suspect
from deepseek_runtime.server.exposition import Exposition, Figure
from deepseek_runtime.server.figures import FIGURES
from deepseek_runtime.server.metrics import Metrics
from deepseek_runtime.server.recorder import Recorder

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "metrics.md"
ALIAS = 'engine="0",model_name="echo"'

EXPECTED = """
num_requests_running num_requests_waiting kv_cache_usage_perc prefix_cache_queries_total prefix_cache_hits_total
num_preemptions_total prompt_tokens_total generation_tokens_total request_success_total iteration_tokens_total
request_prompt_tokens request_generation_tokens request_params_n request_params_max_tokens time_to_first_token_seconds
inter_token_latency_seconds e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds
request_decode_time_seconds request_inference_time_seconds spec_decode_num_drafts_total
spec_decode_num_draft_tokens_total spec_decode_num_accepted_tokens_total
spec_decode_num_accepted_tokens_per_pos_total admission_rejections_total corrupted_requests_total cache_config_info
"""
"""The names that gateways and dashboards expect, without `vllm:`."""

EXPORTED = {name for figure in FIGURES for name in figure.names}


def test_the_documentation_lists_exactly_the_exported_names() -> None:
    documented = set(re.findall(r"(?:dsv3_|vllm:)[a-z0-9_]+", DOCUMENTATION.read_text()))
    assert documented == EXPORTED


def test_every_name_that_gateways_expect_is_exported() -> None:
    assert {f"vllm:{name}" for name in re.findall(r"\w+", EXPECTED)} <= EXPORTED
    names = [name for figure in FIGURES for name in figure.names]
    assert len(names) == len(set(names))


def ask(server: Any, content: str = "abc", **extra: Any) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": content}], "temperature": 0, **extra}
    assert server.client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_server_that_works_shows_every_name(make_server: Any) -> None:
    server = make_server(speculative_tokens=1)
    server.open()
    ask(server)
    server.state.metrics.rejected.add(1, "queue_full")
    families = list(text_string_to_metric_families(server.client.get("/metrics").text))
    shown = {family.name + "_total" * (family.type == "counter") for family in families}
    assert shown == EXPORTED - {"dsv3_expert_load_imbalance"}  # which is known where there are redundant experts
    assert all(family.documentation for family in families)


def test_the_text_is_what_prometheus_client_writes(server: Any) -> None:
    for content in ("abc", "a"):
        ask(server, content, n=2)
        metrics, stats = server.state.metrics, server.engine.stats()
        metrics.watch(lambda stats=stats: stats, Health(rank=0, world_size=1))
        assert metrics.render() == generate_latest(metrics._exposition.registry)


def test_large_numbers_and_new_labels_are_written_as_prometheus_has_them() -> None:
    counts: dict[tuple[str, ...], float] = {}
    sizes = Tally((0.5, 2))
    figures = (
        Figure("counter", "a", "b", "Help", lambda _: counts, ("kind",)),
        Figure("histogram", "h", "", "Help", lambda _: sizes),
        Figure("gauge", "none", "", "Help", lambda _: None),
    )
    exposition = Exposition('m"\\', lambda: ((figure, figure.read(None)) for figure in figures))
    for number in (0, 1, 0.1, 999999.5, 1e6, 12345678, 1e22, float("inf")):
        counts["x",] = number
        counts[f"k{number}",] = 1
        sizes.add(number, 3)
        assert exposition.render() == generate_latest(exposition.registry)
    assert 'dsv3_h_bucket{le="0.5"} 6.0' in exposition.render().decode()
    assert b"dsv3_none" not in exposition.render()


def test_an_answer_is_counted_in_all_its_stages(server: Any) -> None:
    ask(server, "abc", max_tokens=3, n=2)
    for name, count, total in [
        ("request_prompt_tokens", 2, 12),
        ("request_generation_tokens", 2, 6),
        ("request_params_n", 1, 2),
        ("request_params_max_tokens", 1, 3),
    ]:
        assert server.metric(f"vllm:{name}_count{{{ALIAS}}}") == server.metric(f"dsv3_{name}_count") == count
        assert server.metric(f"vllm:{name}_sum{{{ALIAS}}}") == total
    stages = [server.metric(f"dsv3_request_{name}_seconds_sum") for name in ("queue", "prefill", "decode")]
    assert all(stage > 0 for stage in stages[:2])
    assert server.metric("dsv3_request_inference_seconds_sum") == pytest.approx(sum(stages[1:]))
    assert sum(stages) <= server.metric("dsv3_request_seconds_sum")
    assert server.metric(f"vllm:iteration_tokens_total_sum{{{ALIAS}}}") == server.metric("dsv3_step_tokens_sum") > 6
    assert server.metric("dsv3_step_seconds_count") == server.metric("dsv3_steps_total") > 0


def test_the_cache_tells_its_size(server: Any) -> None:
    assert server.metric("dsv3_cache_tokens") == 256 * 16
    labels = 'block_size="16",engine="0",model_name="echo",num_gpu_blocks="256"'
    assert server.metric(f"vllm:cache_config_info{{{labels}}}") == 1


def test_loading_tells_bytes_and_their_rate(make_server: Any) -> None:
    server = make_server()
    server.health.enter(Phase.LOADING)
    server.health.report(0.5)
    server.health.loading.count(1_500_000)
    assert server.metric("dsv3_load_progress") == 0.5
    assert server.metric("dsv3_load_bytes") == 1_500_000
    assert server.metric("dsv3_load_bytes_per_second") > 0
    assert server.metric("dsv3_ready") == 0


def test_every_rank_tells_when_it_last_got_further(server: Any) -> None:
    server.health.watch_ranks(lambda: Suspect(2, 31.0, "rank 2 is silent"), lambda: {0: 0.5, 1: 0.25, 2: 31.0})
    ages = [server.metric(f'dsv3_rank_age_seconds{{rank="{rank}"}}') for rank in range(3)]
    assert ages == [0.5, 0.25, 31.0]
    assert server.metric("dsv3_ready") == 0


def test_a_server_scraped_every_50_ms_has_its_time_for_other_things(server: Any) -> None:
    ask(server)
    server.state.metrics.render()
    before = process_time()
    for _ in range(20):
        server.state.metrics.render()
    assert (process_time() - before) / 20 < 0.005


def test_counting_20000_tokens_a_second_costs_a_fraction_of_it() -> None:
    recorder = Recorder(Metrics("m"), 0.0, [1], 1, 10)
    before = process_time()
    for _ in range(20_000):
        recorder.tokens(0, 1, 0.0)
    assert process_time() - before < 0.2
