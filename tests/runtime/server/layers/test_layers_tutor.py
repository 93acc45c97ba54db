"""The tutor, a model that was really trained, behind both APIs: one answer, whichever way it is asked for."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from deepseek_runtime.settings import checkpoint_folder
from serving import served

QUESTION = "What is 792 minus 297?"


@pytest.fixture(scope="module")
def tutor() -> Iterator[httpx.Client]:
    with served(checkpoint_folder("tutor")) as client:
        yield client


def test_all_three_apis_give_the_same_answer(tutor: httpx.Client) -> None:
    url = str(tutor.base_url).rstrip("/")
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        chat = client.chat.completions.create(model="test", messages=messages, temperature=0)
        response = client.responses.create(model="test", input=QUESTION, temperature=0)
        with client.responses.stream(model="test", input=QUESTION, temperature=0) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    with anthropic.Anthropic(base_url=url, api_key="none") as other:
        fields: Any = {"model": "test", "max_tokens": 500, "messages": messages, "extra_body": {"temperature": 0}}
        message = other.messages.create(**fields)
        with other.messages.stream(**fields) as text:
            streamed = "".join(text.text_stream)
    expected = chat.choices[0].message.content
    assert expected is not None
    assert "495" in expected
    assert len(deltas) > 1
    answers = [response.output_text, "".join(deltas), message.content[0].text, streamed]
    assert answers == [expected] * 4
    assert (response.status, message.stop_reason) == ("completed", "end_turn")
