"""The body of Anthropic's `POST /v1/messages`, and the chat request that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from deepseek_runtime.server.fields import Body, FunctionName, NonEmpty
from deepseek_runtime.server.layers.bodies import LayerBody, as_list, made_call, only_types, refused, text_part


class TextBlock(Body):
    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    """Earlier reasoning. Its signature is not looked at."""

    type: Literal["thinking"]
    thinking: str = ""


class HiddenBlock(Body):
    """Reasoning that only another server could read: accepted and left out."""

    type: Literal["redacted_thinking"]


class UseBlock(Body):
    type: Literal["tool_use"]
    id: NonEmpty
    name: NonEmpty
    input: dict[str, Any] = Field(default_factory=dict)


Texts = Annotated[tuple[TextBlock, ...], only_types("text", what="content block"), as_list(TextBlock, text_part)]


class ResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: NonEmpty
    content: Texts = ()
    is_error: bool = False


Block = Annotated[
    TextBlock | ThinkingBlock | HiddenBlock | UseBlock | ResultBlock,
    Field(discriminator="type"),
]
Blocks = Annotated[
    tuple[Block, ...],
    only_types("text", "thinking", "redacted_thinking", "tool_use", "tool_result", what="content block"),
    as_list(Block, text_part),
]

_ALLOWED = {
    "user": (TextBlock, ResultBlock),
    "assistant": (TextBlock, ThinkingBlock, HiddenBlock, UseBlock),
    "system": (TextBlock,),
}


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _check_places(self) -> Turn:
        wrong = [block.type for block in self.content if not isinstance(block, _ALLOWED[self.role])]
        if wrong:
            raise ValueError(f"a block of type {wrong[0]!r} has no place in a message of role {self.role!r}")
        return self


class Tool(Body):
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False


class Choice(Body):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _check_name(self) -> Choice:
        if self.type == "tool" and not self.name:
            raise ValueError("type 'tool' needs the name of the tool")
        return self

    @property
    def for_chat(self) -> str | dict[str, Any]:
        """The choice in the words of chat requests."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class ThinkingConfig(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None


class JsonFormat(Body):
    type: Literal["json_schema"]
    definition: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: JsonFormat | None = None


def _custom(value: object) -> object:
    """Tools with the type that one without any has."""
    if not isinstance(value, list):
        return value
    return [{**tool, "type": tool.get("type") or "custom"} if isinstance(tool, dict) else tool for tool in value]


class CountBody(LayerBody):
    """POST /v1/messages/count_tokens: a conversation without what is to come of it."""

    ignored: ClassVar[frozenset[str]] = frozenset({"metadata", "service_tier", "cache_control", "betas"})
    names: ClassVar[Mapping[str, str]] = {"response_format": "output_config.format", "stop": "stop_sequences"}

    messages: Annotated[tuple[Turn, ...], Field(min_length=1)]
    system: Texts = ()
    tools: Annotated[tuple[Tool, ...], only_types("custom", what="tool"), BeforeValidator(_custom)] = ()
    tool_choice: Choice = Choice()
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig = OutputConfig()
    mcp_servers: Annotated[Any, refused("this server calls no other servers: give their tools as tools")] = None
    container: Annotated[Any, refused("this server has no containers")] = None

    def chat_fields(self) -> dict[str, Any]:
        messages = [*_system(self.system), *(message for turn in self.messages for message in _messages(turn))]
        return {
            "messages": messages,
            "continue_final_message": messages[-1]["role"] == "assistant",
            "tools": [_tool(tool) for tool in self.tools],
            "tool_choice": self.tool_choice.for_chat,
            "parallel_tool_calls": not self.tool_choice.disable_parallel_tool_use,
            "thinking": {"type": self.thinking.type} if self.thinking else None,
            "response_format": _format(self.output_config.format),
        }


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[tuple[NonEmpty, ...], Field(max_length=16)] = ()
    temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_budget(self) -> MessagesBody:
        budget = self.thinking.budget_tokens if self.thinking else None
        if budget is not None and budget >= self.max_tokens:
            raise ValueError(
                f"thinking.budget_tokens {budget} must be less than max_tokens, which is {self.max_tokens}"
            )
        return self

    def chat_fields(self) -> dict[str, Any]:
        return super().chat_fields() | {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stream": self.stream,
        }


def _system(blocks: Sequence[TextBlock]) -> list[dict[str, Any]]:
    """Blocks of a system prompt are paragraphs of it."""
    text = "\n\n".join(block.text for block in blocks)
    return [{"role": "system", "content": text}] if text else []


def _messages(turn: Turn) -> list[dict[str, Any]]:
    """A turn as chat messages: each result of a call is one, and comes first."""
    results = [_result(block) for block in turn.content if isinstance(block, ResultBlock)]
    texts = [text_part(block.text) for block in turn.content if isinstance(block, TextBlock)]
    if turn.role == "assistant":
        return [_assistant(turn, texts)]
    return [*results, *([{"role": turn.role, "content": texts}] if texts or not results else [])]


def _assistant(turn: Turn, texts: list[dict[str, Any]]) -> dict[str, Any]:
    thinking = "".join(block.thinking for block in turn.content if isinstance(block, ThinkingBlock))
    calls = [made_call(block.id, block.name, block.input) for block in turn.content if isinstance(block, UseBlock)]
    message = {"role": "assistant", "content": texts or None}
    return message | ({"reasoning_content": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})


def _result(block: ResultBlock) -> dict[str, Any]:
    """What a tool gave back. That it is an error has no other place than the text."""
    texts = [text_part("error: ")] if block.is_error else []
    texts += [text_part(part.text) for part in block.content]
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": texts}


def _tool(tool: Tool) -> dict[str, Any]:
    fields = {"name": tool.name, "parameters": tool.input_schema, "strict": tool.strict}
    return {"type": "function", "function": fields | ({"description": tool.description} if tool.description else {})}


def _format(wanted: JsonFormat | None) -> dict[str, Any] | None:
    """A form is kept to the letter in this API, there is no other mode."""
    if wanted is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.definition, "strict": True}}
