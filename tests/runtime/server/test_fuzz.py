"""The OpenAPI document, fuzzed over real HTTP: whatever comes, no 5xx, no hang, and always the one envelope.

`FUZZ_CASES=5000` raises the number of cases, which operations with a body share, right and wrong ones in equal parts.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from deepseek_runtime.server.layers import envelope as anthropic
from deepseek_runtime.server.openapi import ERROR

CASES = int(os.environ.get("FUZZ_CASES", "100"))
HANGS_AFTER = 20.0
"""Seconds; the echo model answers with all its context in less than one."""

SCHEMA = "/openapi.json"


@pytest.fixture(scope="module")
def schema(shared_server: Any) -> Any:
    return schemathesis.openapi.from_url(f"{shared_server.url}{SCHEMA}")


def check(response: httpx.Response, path: str, what: str) -> None:
    """An answer of the model, or a refusal in the envelope."""
    status = response.status_code
    if status < 400:
        return
    late = status == 504 and "no complete answer within" in response.json()["error"]["message"]
    assert status < 500 or late, f"{what}: {response.text}"
    assert response.headers["content-type"] == "application/json", what
    jsonschema.validate(response.json(), anthropic.SCHEMA if anthropic.speaks_at(path) else ERROR)
    assert response.headers["x-request-id"], what


def test_whatever_the_document_allows_or_forbids_is_answered_in_order(
    shared_server: Any, schema: Any, record_property: Callable[[str, object], None]
) -> None:
    operations = [result.ok() for result in schema.get_all_operations()]
    counts = dict.fromkeys((f"{operation.method} {operation.path}" for operation in operations), 0)
    share = CASES // (2 * sum(bool(operation.body) for operation in operations)) + 1
    for operation in operations:
        fuzz(shared_server, operation, GenerationMode.POSITIVE, share, counts)
        if operation.body:  # elsewhere there is nothing to be wrong: paths and headers are any text
            fuzz(shared_server, operation, GenerationMode.NEGATIVE, share, counts)
    record_property("cases", sum(counts.values()))
    assert all(counts.values()), counts
    assert shared_server.engine.stats().running == 0


def fuzz(server: Any, operation: Any, mode: GenerationMode, share: int, counts: dict[str, int]) -> None:
    name = f"{operation.method} {operation.path}"

    @settings(
        max_examples=share, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        counts[name] += 1
        arguments = case.as_transport_kwargs(base_url=server.url)
        check(httpx.Response(**answer(case)), operation.path, f"{name} {arguments}")

    def answer(case: Any) -> dict[str, Any]:
        response = case.call(base_url=server.url, timeout=HANGS_AFTER)
        headers = {key: values[0] for key, values in response.headers.items()}
        headers.pop("content-encoding", None)
        return {"status_code": response.status_code, "headers": headers, "content": response.content}

    run()


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/responses", "/v1/messages"],
)
def test_bodies_that_are_anything_are_answered_in_order(shared_server: Any, path: str) -> None:
    anything = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )

    @settings(max_examples=max(CASES // 8, 10), deadline=None, database=None, derandomize=True)
    @given(st.binary(max_size=64) | anything.map(encoded))
    def run(content: bytes) -> None:
        response = shared_server.client.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code >= 400
        check(response, path, f"{path} {content!r}")

    run()


def encoded(value: Any) -> bytes:
    """As lenient writers do it, lone surrogates and NaN included."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
