"""The body of OpenAI's `POST /v1/responses`, and the chat request that it stands for. Nothing is stored here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from deepseek_runtime.server.fields import Body, Function, NonEmpty, ResponseFormat
from deepseek_runtime.server.layers.bodies import LayerBody, as_list, made_call, only_types, refused, text_part

STATELESS = refused("nothing is stored here: send the whole conversation as input")
_TEXTS = ("input_text", "output_text", "text", "refusal")


class ContentPart(Body):
    type: str
    text: str = ""
    refusal: str = ""


Parts = Annotated[tuple[ContentPart, ...], only_types(*_TEXTS, what="content part"), as_list(ContentPart, text_part)]


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts = ()


class CallItem(Body):
    type: Literal["function_call"]
    call_id: NonEmpty
    name: NonEmpty
    arguments: str = "{}"


class ResultItem(Body):
    type: Literal["function_call_output"]
    call_id: NonEmpty
    output: Parts = ()


class ReasoningItem(Body):
    """Earlier reasoning: accepted and left out, as the releases do it."""

    type: Literal["reasoning"]


def _typed(value: object) -> object:
    """Items with the type that one without any has, and without nulls in its place."""
    if not isinstance(value, list):
        return value
    return [{**item, "type": item.get("type") or "message"} if isinstance(item, dict) else item for item in value]


Item = Annotated[MessageItem | CallItem | ResultItem | ReasoningItem, Field(discriminator="type")]
Items = Annotated[
    tuple[Item, ...],
    Field(min_length=1),
    only_types("message", "function_call", "function_call_output", "reasoning", what="item"),
    BeforeValidator(_typed),
    as_list(Item, lambda text: {"role": "user", "content": text}, least=1),
]


class FunctionTool(Function):
    type: Literal["function"] = "function"


def _nested(value: object) -> object:
    """This API writes a schema's fields beside its type, the core below it."""
    if isinstance(value, dict) and value.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: item for name, item in value.items() if name != "type"}}
    return value


class TextConfig(Body):
    format: Annotated[ResponseFormat, BeforeValidator(_nested, json_schema_input_type=dict[str, Any])] = ResponseFormat(
        type="text"
    )


class ReasoningConfig(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponsesBody(LayerBody):
    """POST /v1/responses."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {
            "user", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "max_tool_calls",
            "stream_options",
        }
    )  # fmt: skip
    names: ClassVar[Mapping[str, str]] = {
        "messages": "input",
        "response_format": "text.format",
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
    }

    input: Items
    instructions: str | None = None
    tools: Annotated[tuple[FunctionTool, ...], only_types("function", what="tool")] = ()
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextConfig = TextConfig()
    reasoning: ReasoningConfig = ReasoningConfig()
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    metadata: dict[str, Any] = Field(default_factory=dict)
    store: bool = False
    include: tuple[str, ...] = ()
    truncation: Literal["disabled", "auto"] = "disabled"
    previous_response_id: Annotated[Any, STATELESS] = None
    conversation: Annotated[Any, STATELESS] = None
    prompt: Annotated[Any, STATELESS] = None
    background: Annotated[bool, refused("nothing is stored here: stream the answer or wait for it")] = False
    top_logprobs: Annotated[int, refused("log-probabilities are there in chat completions only")] = 0

    @field_validator("tool_choice")
    @classmethod
    def _known_choice(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(value, dict) and value.get("type") not in ("function", "allowed_tools"):
            raise ValueError(f"a choice of type {value.get('type')!r} cannot be made here: tools are functions")
        return value

    @field_validator("include")
    @classmethod
    def _no_logprobs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "message.output_text.logprobs" in value:
            raise ValueError("log-probabilities are there in chat completions only")
        return value

    @field_validator("truncation")
    @classmethod
    def _whole(cls, value: str) -> str:
        if value == "auto":
            raise ValueError("input is never shortened here: leave out what does not fit, or ask for 'disabled'")
        return value

    def chat_fields(self) -> dict[str, Any]:
        tools = [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools]
        effort = self.reasoning.effort
        return {
            "messages": _messages(self.instructions, self.input),
            "tools": tools,
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self.text.format.model_dump(by_alias=True),
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
        } | ({"reasoning_effort": effort} if effort else {})


def _messages(
    instructions: str | None, items: Sequence[MessageItem | CallItem | ResultItem | ReasoningItem]
) -> list[dict[str, Any]]:
    """The conversation; calls belong to the assistant's message in front of them, if there is one."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        match item:
            case MessageItem():
                messages.append({"role": item.role, "content": _parts(item.content)})
            case CallItem():
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant"})
                calls = messages[-1].setdefault("tool_calls", [])
                calls.append(made_call(item.call_id, item.name, item.arguments))
            case ResultItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _parts(item.output)})
    return messages


def _parts(parts: Sequence[ContentPart]) -> list[dict[str, Any]]:
    return [text_part(part.text or part.refusal) for part in parts]
