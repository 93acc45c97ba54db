"""Bodies of requests: what is checked, what is refused by name, what is ignored.

Unknown fields are accepted, since many clients send extras. Fields that would change the answer but are not implemented
are refused, so that nobody believes they had an effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from deepseek_runtime.engine.sampling import REPETITION_PENALTIES
from deepseek_runtime.server.fields import (
    AnyToolChoice,
    Body,
    Message,
    NonEmpty,
    ResponseFormat,
    StreamOptions,
    Thinking,
    ToolChoice,
    ToolField,
)

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "modalities",
        "verbosity",
        "cache_salt",
        "request_id",
        "functions",
        "function_call",
    }
)
"""Fields that clients send as a matter of course and that change nothing here: not worth a line in the log."""


def _unsupported(value: object) -> object:
    if value:
        raise ValueError("not supported by this server")
    return value


Unsupported = AfterValidator(_unsupported)

Stops = NonEmpty | Annotated[list[NonEmpty], Field(max_length=16)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class GenerationBody(Body):
    """Fields that chat and plain completions share. `timeout` is in seconds."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=REPETITION_PENALTIES[0], le=REPETITION_PENALTIES[1])] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        tuple[NonEmpty, ...], Field(max_length=16), BeforeValidator(_as_list, json_schema_input_type=Stops)
    ] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    n: Annotated[int, Field(ge=1, le=128)] = 1
    best_of: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    response_format: ResponseFormat | None = None
    priority: int = 0
    timeout: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _refuse(self) -> GenerationBody:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError(f"best_of {self.best_of} is not supported, only the value of n, which is {self.n}")
        if self.wanted_tokens is not None and self.min_tokens > self.wanted_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than the {self.wanted_tokens} tokens asked for")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk tells the usage so far."""
        return self.include_usage and self.stream_options.continuous_usage_stats

    @property
    def wanted_tokens(self) -> int | None:
        """The bound on generated tokens that the client set."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """Alternatives to report beside each token; None for no log-probabilities."""
        return None

    @property
    def unknown_fields(self) -> set[str]:
        """Names of fields that have no effect, which their sender may not know."""
        return set(self.model_extra or ()) - IGNORED


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    thinking: Thinking | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    tools: tuple[ToolField, ...] = ()
    tool_choice: AnyToolChoice = ToolChoice(mode="auto")
    parallel_tool_calls: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_functions(cls, value: object) -> object:
        """The legacy way to give tools and choose among them; `functions` stays, to be answered in kind."""
        if not isinstance(value, dict) or not isinstance(value.get("functions"), list) or value.get("tools"):
            return value
        choice = value.get("function_call")
        named = {"type": "function", "function": choice} if isinstance(choice, dict) else choice
        tools = [{"function": function} for function in value["functions"]]
        return {**value, "tools": tools, "tool_choice": named, "parallel_tool_calls": False}

    @model_validator(mode="after")
    def _refuse_chat(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.proceed and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs the last message to be the assistant's")
        self._check_choice()
        return self

    def _check_choice(self) -> None:
        names, choice = [tool.function.name for tool in self.tools], self.tool_choice
        if choice.mode in ("required", "named") and not names:
            raise ValueError(f"tool_choice {choice.mode!r} needs tools to choose from")
        if unknown := [name for name in choice.names if name not in names]:
            raise ValueError(f"tool_choice names {unknown[0]!r}, which is not among the tools: {', '.join(names)}")

    @property
    def proceed(self) -> bool:
        """Whether the last assistant message is to be continued rather than answered."""
        return self.continue_final_message or self.messages[-1].prefix

    @property
    def may_call(self) -> bool:
        """Whether the answer may have tool calls in it."""
        return bool(self.tools) and self.tool_choice.mode != "none"

    @property
    def legacy(self) -> bool:
        """Whether the client speaks of functions instead of tools."""
        return "functions" in (self.model_extra or {})

    @property
    def wants_thinking(self) -> bool | None:
        """What the client said about reasoning, in whichever of the four ways; None for nothing."""
        for name in ("thinking", "enable_thinking"):
            if name in self.chat_template_kwargs:
                return bool(self.chat_template_kwargs[name])
        if self.thinking:
            return self.thinking.type != "disabled"
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


def _as_prompts(value: object) -> object:
    """A list of prompts, whichever of the API's four forms was sent."""
    prompts = value if isinstance(value, list) and not any(type(item) is int for item in value) else [value]
    if not prompts or not all(_is_prompt(prompt) for prompt in prompts):
        raise ValueError("must be a text, a list of token ids, or a list of either, none of them empty")
    return prompts


def _is_prompt(value: object) -> bool:
    ids = isinstance(value, list) and all(type(item) is int for item in value)
    return bool(value) and (ids or isinstance(value, str))


class CompletionBody(GenerationBody):
    """POST /v1/completions. `prompt` is a list of prompts whichever form was sent."""

    prompt: Annotated[
        list[str | list[int]],
        BeforeValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True
    echo: bool = False
    suffix: Annotated[str | None, Unsupported] = None

    @model_validator(mode="after")
    def _refuse_completion(self) -> CompletionBody:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported: log-probabilities of the prompt are not computed")
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs


class AbortBody(Body):
    """POST /abort: the `X-Request-Id` of the requests to end."""

    request_id: NonEmpty


class TokenizeBody(Body):
    """POST /tokenize: a text, or messages as the chat template renders them."""

    model: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolField, ...] = ()
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeBody:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
