"""Parts of request bodies: messages, tools and their choice, and what an answer is to look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

NonEmpty = Annotated[str, Field(min_length=1)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Body(BaseModel):
    """Common rules: null means absent, since SDKs write out what their users did not set; what is unknown is kept."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class TextPart(Body):
    type: str
    text: str = ""

    @field_validator("type")
    @classmethod
    def _text_only(cls, value: str) -> str:
        if value != "text":
            raise ValueError(f"this model reads text only, not parts of type {value!r}")
        return value


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class CalledFunction(Body):
    name: NonEmpty
    arguments: str | dict[str, Any] = "{}"


class MadeCall(Body):
    """A call that an earlier turn of the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        list[TextPart] | None, BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart] | None)
    ] = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    prefix: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_tool_call(cls, value: object) -> object:
        """The legacy way to write a single call."""
        if isinstance(value, dict) and value.get("function_call") and not value.get("tool_calls"):
            return {**value, "tool_calls": [{"function": value["function_call"]}]}
        return value


class Function(Body):
    """A function that the model may call. Without `parameters` it takes none."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


class ToolField(Body):
    type: Literal["function"] = "function"
    function: Function


def _as_choice(value: object) -> object:
    """The API's five ways to write a choice, as mode and names; what is none of them is left to be complained about."""
    if isinstance(value, str):
        return {"mode": value}
    if not isinstance(value, dict) or value.get("type") not in ("function", "allowed_tools"):
        return value
    if value["type"] == "function":
        return {"mode": "named", "names": [_name(value)]}
    allowed = value.get("allowed_tools", value)
    tools = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(tools, list):
        raise ValueError("allowed_tools needs a list of tools")
    return {"mode": allowed.get("mode", "auto"), "names": [_name(tool) for tool in tools]}


def _name(tool: object) -> object:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


class ToolChoice(Body):
    """Whether calls may, must or must not be made, and which; no `names` stands for all tools."""

    mode: Literal["none", "auto", "required", "named"]
    names: tuple[NonEmpty, ...] = ()


class JsonSchema(Body):
    name: str = "answer"
    definition: dict[str, Any] | bool = Field(alias="schema")
    strict: bool = False


class ResponseFormat(Body):
    """What an answer is to look like. `definition` beside `json_object` is how Fireworks' API writes a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    definition: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type 'json_schema' needs the field json_schema with a schema in it")
        return self


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive", "auto"]


WrittenChoice = Literal["none", "auto", "required"] | dict[str, Any]
AnyToolChoice = Annotated[ToolChoice, BeforeValidator(_as_choice, json_schema_input_type=WrittenChoice)]
