"""Log-probabilities are the target model's own, whatever drafts, streams and temperatures do."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

VOCABULARY = 260
OWN = -math.log1p((VOCABULARY - 1) * math.exp(-20))
"""What the echo model gives its own choice: its logits are 10 for that and -10 for all others."""


@pytest.fixture(params=[0, 2], ids=["without drafts", "with drafts"])
def server(request: pytest.FixtureRequest, make_server: Callable[..., Any]) -> Any:
    server = make_server(speculative_tokens=request.param)
    server.open()
    return server


def entries(server: Any, *, stream: bool, **extra: Any) -> tuple[list[dict[str, Any]], int]:
    """The log-probabilities of an answer, and how many tokens it has."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "hé 🙂"}], "temperature": 0, "logprobs": True}
    body |= {"stream": stream, "stream_options": {"include_usage": True}, **extra}
    response = server.client.post("/v1/chat/completions", json=body)
    if not stream:
        answer = response.json()
        return answer["choices"][0]["logprobs"]["content"], answer["usage"]["completion_tokens"]
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    logprobs = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    return [entry for one in logprobs for entry in one["content"]], chunks[-1]["usage"]["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("alternatives", [None, 0, 2])
@pytest.mark.parametrize("change", [{}, {"temperature": 0.5, "top_p": 0.5}, {"frequency_penalty": 1.5}])
def test_values_are_those_of_the_model(
    server: Any, stream: bool, alternatives: int | None, change: dict[str, Any]
) -> None:
    extra = {**change, **({} if alternatives is None else {"top_logprobs": alternatives})}
    found, tokens = entries(server, stream=stream, **extra)
    assert len(found) == tokens == len("hé 🙂".encode()) + 1
    for entry in found:
        assert entry["logprob"] == pytest.approx(OWN, abs=1e-4)
        top = entry["top_logprobs"]
        assert len(top) == (alternatives or 0)
        if top:
            assert (top[0]["token"], top[0]["bytes"]) == (entry["token"], entry["bytes"])
            assert top[1]["logprob"] == pytest.approx(OWN - 20, abs=1e-4)
    assert bytes(byte for entry in found[:-1] for byte in entry["bytes"]).decode() == "hé 🙂"
