"""When the server says no: loading, full, slow, draining, broken, keyless; and what a client that leaves sets free."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from deepseek_runtime.health import Phase
from observing import at_rest, eventually


def ask(content: str = "abc", **extra: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], "temperature": 0, **extra}


@contextmanager
def long_stream(server: Any, **extra: Any) -> Iterator[Iterator[str]]:
    """A stream that has shown its first words and would go on for 500 tokens."""
    body = ask(stream=True, ignore_eos=True, **extra)
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(line for line in lines if '"content":"a' in line)
        yield lines


def slow_down(server: Any) -> None:
    """From now on each step needs permission; the first few have it."""
    server.executor.gate.clear()
    for _ in range(5):
        server.executor.steps_allowed.release()


def let_go_when_noticed(server: Any, departures: int) -> None:
    """Open the gate once the server knows that its clients left: what it still runs then, it runs knowingly."""
    line = f'dsv3_requests_finished_total{{finished_reason="client_disconnect"}} {departures}.0'
    eventually(lambda: line in server.client.get("/metrics").text)
    server.executor.gate.set()


def data(line: str) -> Any:
    return json.loads(line.removeprefix("data: "))


def test_nothing_but_life_is_claimed_while_the_model_loads(make_server: Any) -> None:
    server = make_server()
    server.health.enter(Phase.LOADING)
    server.health.report(0.25)
    assert server.client.get("/health").status_code == 200
    ready = server.client.get("/readyz")
    assert (ready.status_code, ready.json()["phase"], ready.json()["progress"]) == (503, "loading", 0.25)
    for response in (server.client.get("/v1/models"), server.client.post("/v1/chat/completions", json=ask())):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "loading"
    server.open()
    assert server.client.get("/readyz").status_code == 200
    assert server.client.post("/v1/chat/completions", json=ask()).status_code == 200


def test_a_full_queue_answers_429_before_anything_else(make_server: Any) -> None:
    server = make_server(max_running=1, max_queued=2)
    server.open()
    server.executor.gate.clear()
    with ThreadPoolExecutor(8) as pool:

        def post(n: int) -> httpx.Response:
            response: httpx.Response = server.client.post("/v1/chat/completions", json=ask(n=n))
            return response

        accepted = [pool.submit(post, 2)]
        eventually(lambda: server.engine.stats().running == 1)
        accepted.append(pool.submit(post, 1))
        eventually(lambda: server.engine.stats().waiting == 2)
        refused = [post(n) for n in (1, 2, 1)]
        server.executor.gate.set()
        assert [future.result().status_code for future in accepted] == [200, 200]
    assert [response.status_code for response in refused] == [429] * 3
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert {response.json()["error"]["code"] for response in refused} == {"queue_full"}
    assert server.metric('dsv3_requests_rejected_total{code="queue_full"}') == 3


def test_a_client_that_leaves_its_stream_frees_everything(server: Any) -> None:
    slow_down(server)
    with long_stream(server):
        assert server.metric("dsv3_requests_running") == 1
    let_go_when_noticed(server, 1)
    eventually(lambda: at_rest(server))
    assert len(server.executor.steps) < 20
    assert server.metric('dsv3_requests_finished_total{finished_reason="client_disconnect"}') == 1


@pytest.mark.parametrize("queued", [False, True])
def test_a_client_that_leaves_while_it_waits_frees_everything(make_server: Any, queued: bool) -> None:
    server = make_server(max_running=1)
    server.open()
    slow_down(server)
    with httpx.Client(base_url=server.url, timeout=0.3) as impatient:
        if queued:
            with long_stream(server), pytest.raises(httpx.ReadTimeout):
                impatient.post("/v1/chat/completions", json=ask())
        else:
            with pytest.raises(httpx.ReadTimeout):
                impatient.post("/v1/chat/completions", json=ask(ignore_eos=True))
    let_go_when_noticed(server, 2 if queued else 1)
    eventually(lambda: at_rest(server))
    assert len(server.executor.steps) < 20
    assert server.client.post("/v1/chat/completions", json=ask()).status_code == 200


def test_a_request_that_takes_too_long_gets_504(make_server: Any) -> None:
    server = make_server(request_timeout=0.2)
    server.open()
    server.executor.gate.clear()
    response = server.client.post("/v1/chat/completions", json=ask())
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    with pytest.raises(openai.APIError, match=r"within 0\.2 s"):
        list(server.openai.chat.completions.create(**ask(), stream=True))
    server.executor.gate.set()
    eventually(lambda: at_rest(server))


def test_a_silent_stream_shows_life_in_comments(make_server: Any) -> None:
    server = make_server(keep_alive=0.05)
    server.open()
    server.executor.gate.clear()
    with server.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        lines = response.iter_lines()
        next(line for line in lines if line == ": keep-alive")
        server.executor.gate.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_draining_finishes_streams_and_sends_others_away(server: Any) -> None:
    slow_down(server)
    with long_stream(server, max_tokens=20) as lines:
        server.health.enter(Phase.DRAINING)
        assert server.client.get("/readyz").status_code == 503
        assert server.client.get("/livez").status_code == 200
        response = server.client.post("/v1/chat/completions", json=ask())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        # A retry over the same connection would come back to this server.
        assert (response.headers["retry-after"], response.headers["connection"]) == ("1", "close")
        drained = threading.Thread(target=server.engine.drain, args=(10,))
        drained.start()
        server.executor.gate.set()
        rest = [line for line in lines if line]
        drained.join()
    assert rest[-1] == "data: [DONE]"
    assert data(rest[-2])["choices"][0]["finish_reason"] == "length"


def test_a_broken_group_ends_streams_with_an_error_and_sends_others_away(server: Any) -> None:
    slow_down(server)
    with long_stream(server) as lines:
        server.health.enter(Phase.BROKEN, "rank 1 is gone")
        server.engine.fail("rank 1 is gone")
        rest = [line for line in lines if line]
    assert data(rest[-1])["error"]["code"] == "group_broken"
    response = server.client.post("/v1/chat/completions", json=ask())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "group_broken")
    assert int(response.headers["retry-after"]) > 0
    assert server.client.get("/livez").status_code == 503


def test_a_stall_is_not_ready_while_an_idle_server_never_stalls(server: Any) -> None:
    eventually(lambda: server.engine.stats().step_age < 0.1)
    assert server.client.get("/readyz").status_code == 200
    server.health.watch(lambda: 6.0)
    ready = server.client.get("/readyz")
    assert (ready.status_code, ready.json()["phase"], ready.json()["last_step_age_seconds"]) == (503, "stalled", 6.0)
    assert server.client.get("/livez").status_code == 200
    assert server.client.post("/v1/chat/completions", json=ask()).json()["error"]["code"] == "stalled"
    server.health.watch(lambda: 301.0)
    assert server.client.get("/livez").status_code == 503


def step_by_step(server: Any) -> None:
    """An answer of which no two tokens come together."""
    server.executor.gate.clear()
    with server.client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
        for _ in (line for line in response.iter_lines() if line):
            server.executor.steps_allowed.release()
    server.executor.gate.set()


def test_metrics_have_our_names_and_those_that_gateways_read(server: Any) -> None:
    step_by_step(server)
    alias = 'engine="0",model_name="echo"'
    for own, other in [
        ("dsv3_requests_running", f"vllm:num_requests_running{{{alias}}}"),
        ("dsv3_requests_waiting", f"vllm:num_requests_waiting{{{alias}}}"),
        ("dsv3_cache_usage", f"vllm:kv_cache_usage_perc{{{alias}}}"),
        ("dsv3_prompt_tokens_total", f"vllm:prompt_tokens_total{{{alias}}}"),
        ("dsv3_generation_tokens_total", f"vllm:generation_tokens_total{{{alias}}}"),
        ("dsv3_time_to_first_token_seconds_count", f"vllm:time_to_first_token_seconds_count{{{alias}}}"),
        ("dsv3_inter_token_latency_seconds_count", f"vllm:inter_token_latency_seconds_count{{{alias}}}"),
        ("dsv3_request_seconds_count", f"vllm:e2e_request_latency_seconds_count{{{alias}}}"),
        ("dsv3_preemptions_total", f"vllm:num_preemptions_total{{{alias}}}"),
        ("dsv3_prefix_cache_queries_total", f"vllm:prefix_cache_queries_total{{{alias}}}"),
        ("dsv3_prefix_cache_hits_total", f"vllm:prefix_cache_hits_total{{{alias}}}"),
    ]:
        assert server.metric(own) == server.metric(other)
    assert server.metric("dsv3_prompt_tokens_total") == 6
    assert server.metric("dsv3_generation_tokens_total") == 4
    assert server.metric('dsv3_requests_finished_total{finished_reason="stop"}') == 1
    assert server.metric("dsv3_ready") == 1


def test_metrics_tell_how_drafts_fare_by_position(make_server: Callable[..., Any]) -> None:
    server = make_server(speculative_tokens=2)
    server.open()
    text = "The quick brown fox jumps over the lazy dog."
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], "temperature": 0}
    plain = {**body, "logprobs": True, "top_logprobs": 1}
    answer = server.client.post("/v1/chat/completions", json=plain).json()["choices"][0]
    assert answer["message"]["content"] == text
    assert len(answer["logprobs"]["content"]) == 45
    assert all(entry["logprob"] == pytest.approx(0, abs=1e-4) for entry in answer["logprobs"]["content"])
    drafted, accepted = (
        [server.metric(f'dsv3_spec_decode_num_{kind}_tokens_total{{position="{i}"}}') for i in range(2)]
        for kind in ("draft", "accepted")
    )
    assert drafted[0] >= drafted[1] > 0
    assert all(0 < held < tried for held, tried in zip(accepted, drafted, strict=True))
    alias = 'engine="0",model_name="echo"'
    assert server.metric(f"vllm:spec_decode_num_drafts_total{{{alias}}}") == drafted[0]
    assert server.metric(f"vllm:spec_decode_num_draft_tokens_total{{{alias}}}") == sum(drafted)
    assert server.metric(f"vllm:spec_decode_num_accepted_tokens_total{{{alias}}}") == sum(accepted)
    per_position = f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{alias},position="1"}}'
    assert server.metric(per_position) == accepted[1]
    assert server.metric("dsv3_sequence_tokens_total") == 45
    assert server.metric("dsv3_sequence_forwards_total") < 35
