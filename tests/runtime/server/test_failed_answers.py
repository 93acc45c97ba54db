"""What a client sees of an answer that cannot go on while the server can, and of stops before their time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepseek_runtime.text.grammar import GrammarMask

QUESTION: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "abcdef"}], "temperature": 0}


def fail(self: GrammarMask, generated: Sequence[int], /) -> NDArray[np.bool_]:
    raise RuntimeError("the parser is lost")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_grammar_that_fails_is_an_error_of_its_own_request(
    server: Any, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(GrammarMask, "__call__", fail)
        body = {**QUESTION, "n": 2, "response_format": {"type": "json_object"}, "stream": streamed}
        response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == (200 if streamed else 500)
    assert '"code":"answer_failed"' in response.text
    assert "the grammar of this request failed: RuntimeError: the parser is lost" in response.text
    answer = server.client.post("/v1/chat/completions", json=QUESTION).json()
    assert answer["choices"][0]["message"]["content"] == "abcdef"
    assert server.metric('dsv3_requests_finished_total{finished_reason="failed"}') == 2
    assert server.engine.stats().cache_usage == 0


@pytest.mark.parametrize(
    ("least", "content"), [(0, "a"), (1, "a"), (2, "a"), (3, "abcdef"), (4, "abcdef"), (6, "abcdef")]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_counts_from_the_token_behind_the_least_length(
    server: Any, least: int, content: str, streamed: bool
) -> None:
    """The echo model's tokens are letters: "bc" is complete with the third."""
    request = {**QUESTION, "stop": "bc", "min_tokens": least}
    if streamed:
        chunks = server.openai.chat.completions.create(**request_of(request), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content
    else:
        answer = server.client.post("/v1/chat/completions", json=request).json()
        assert answer["choices"][0]["message"]["content"] == content


def request_of(body: dict[str, Any]) -> dict[str, Any]:
    """The same for the official client, which takes fields that it does not know apart."""
    extra = {"min_tokens": body["min_tokens"]}
    return {name: value for name, value in body.items() if name not in extra} | {"extra_body": extra}


def test_stop_tokens_and_stop_strings_wait_equally_long(server: Any) -> None:
    [token] = server.tokenizer.encode("c")
    for least, length in ((2, 3), (3, 7)):
        lengths = set()
        for stop in ({"stop": "c"}, {"stop_token_ids": [token]}):
            body = {**QUESTION, **stop, "min_tokens": least}
            usage = server.client.post("/v1/chat/completions", json=body).json()["usage"]
            lengths.add(usage["completion_tokens"])
        assert lengths == {length}
