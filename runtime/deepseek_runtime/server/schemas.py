"""Bodies of requests: what is checked, what is refused by name, what is ignored.

Unknown fields are accepted, since many clients send extras. Fields that would change the answer but are not implemented
are refused, so that nobody believes they had an effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

NonEmpty = Annotated[str, Field(min_length=1)]


def _unsupported(value: object) -> object:
    if value:
        raise ValueError("not supported by this server")
    return value


Unsupported = AfterValidator(_unsupported)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Body(BaseModel):
    """Common rules of all bodies."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class StreamOptions(Body):
    include_usage: bool = False


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


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[list[TextPart] | None, BeforeValidator(_as_parts)] = None
    prefix: bool = False


class GenerationBody(Body):
    """Fields that chat and plain completions share."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[NonEmpty], BeforeValidator(_as_list), Field(max_length=16)] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    priority: int | None = None

    @model_validator(mode="after")
    def _refuse(self) -> GenerationBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of {self.best_of} is not supported, only the value of n, which is {self.n or 1}")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wanted_tokens(self) -> int | None:
        """The bound on generated tokens that the client set."""
        return self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """Alternatives to report beside each token; None for no log-probabilities."""
        return None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Any] | None, Unsupported] = None
    functions: Annotated[list[Any] | None, Unsupported] = None
    response_format: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _plain_text(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value and value.get("type") != "text":
            raise ValueError(f"type {value.get('type')!r} is not supported by this server, only 'text'")
        return value

    @model_validator(mode="after")
    def _refuse_chat(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.proceed and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs the last message to be the assistant's")
        return self

    @property
    def proceed(self) -> bool:
        """Whether the last assistant message is to be continued rather than answered."""
        return self.continue_final_message or self.messages[-1].prefix

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


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

    prompt: Annotated[list[str | list[int]], BeforeValidator(_as_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True
    echo: Annotated[bool | None, Unsupported] = False
    suffix: Annotated[str | None, Unsupported] = None

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs


class TokenizeBody(Body):
    """POST /tokenize: a text, or messages as the chat template renders them."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
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
