"""Streams and whole answers say the same, whatever the answer is made of and however it is cut into pieces."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_runtime.engine.sequence import FinishReason
from deepseek_runtime.server.generation import Piece, join
from deepseek_runtime.server.shapes import Calling, ChatShape
from deepseek_runtime.settings import checkpoint_folder
from deepseek_runtime.text.parser import Content, Part, Reasoning, ToolArguments, ToolCall
from deepseek_runtime.text.tokenizer import Tokenizer

TEXT = st.text(min_size=1, max_size=5)
CALL = st.tuples(TEXT, st.lists(TEXT, max_size=3))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(checkpoint_folder("tutor"))


@st.composite
def answers(draw: st.DrawFn) -> list[Piece]:
    """Pieces of an answer: reasoning, content and calls, in the order in which a parser tells them."""
    parts: list[Part] = [Reasoning(text) for text in draw(st.lists(TEXT, max_size=3))]
    parts += [Content(text) for text in draw(st.lists(TEXT, max_size=3))]
    for index, (name, arguments) in enumerate(draw(st.lists(CALL, max_size=3))):
        parts += [ToolCall(index, name), *(ToolArguments(index, text) for text in arguments)]
    cuts = sorted(draw(st.lists(st.integers(0, len(parts)), max_size=4)))
    bounds = [0, *cuts, len(parts)]
    groups = [parts[a:b] for a, b in pairwise(bounds)]
    last = len(groups) - 1
    end = draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]))
    return [Piece(0, tuple(group), (), end if i == last else None) for i, group in enumerate(groups)]


def assemble(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A message put together from deltas, as clients do it."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for delta in (choice["delta"] for choice in choices):
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                assert (part["index"], part["function"]["arguments"]) == (len(message["calls"]), "")
                message["calls"].append([part["function"]["name"], ""])
            else:
                message["calls"][part["index"]][1] += part["function"]["arguments"]
    return message


@given(answers(), st.booleans())
def test_a_stream_adds_up_to_the_whole_answer(tokenizer: Tokenizer, pieces: list[Piece], named: bool) -> None:
    calling = Calling(named=named)
    shape = ChatShape(tokenizer, logprobs=False, calling=calling)
    chunks = [*shape.opening(0), *(choice for piece in pieces for choice in shape.chunks(piece))]
    chunks = [orjson.loads(orjson.dumps(choice)) for choice in chunks]
    [joined] = join(pieces)
    whole = ChatShape(tokenizer, logprobs=False, calling=calling).whole(joined)
    message = whole["message"]
    streamed = assemble(chunks)
    assert streamed["content"] == (message["content"] or "")
    assert streamed["reasoning_content"] == message.get("reasoning_content", "")
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]
    assert streamed["calls"] == calls
    assert [choice["finish_reason"] for choice in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    assert (message["content"] is None) == (not joined.text and bool(joined.parts))
