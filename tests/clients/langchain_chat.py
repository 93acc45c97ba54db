"""LangChain's ChatOpenAI: messages in parts, streams, bound tools, structured output by a strict schema."""

from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Verdict(BaseModel):
    """Whether a sum is right."""

    right: bool
    mark: Literal["good", "bad"]


@tool
def paint(colour: Literal["red", "blue"]) -> str:
    """Paint the wall."""
    return f"painted {colour}"


model = ChatOpenAI(model="test", api_key="none", temperature=0)
conversation = [
    SystemMessage([{"type": "text", "text": "You are a tutor."}]),
    HumanMessage([{"type": "text", "text": "What is 12 "}, {"type": "text", "text": "plus 30?"}]),
]

answer = model.invoke(conversation)
assert "42" in answer.content, answer
assert answer.usage_metadata["output_tokens"] > 0
assert "".join(chunk.content for chunk in model.stream(conversation)) == answer.content

bound = model.bind_tools([paint], tool_choice="any", parallel_tool_calls=False)
called = bound.invoke(conversation)
(call, *_) = called.tool_calls
assert call["name"] == "paint"
assert call["args"]["colour"] in ("red", "blue")
results = [ToolMessage(paint.invoke(call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
assert isinstance(model.invoke([*conversation, called, *results], max_tokens=8), AIMessage)

verdict = model.with_structured_output(Verdict, method="json_schema", strict=True).invoke(conversation)
assert isinstance(verdict, Verdict)
verdict = model.with_structured_output(Verdict, method="function_calling").invoke(conversation)
assert isinstance(verdict, Verdict)
