"""What the bodies of this layer's APIs have in common: the way to a chat request, and how things are refused."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from deepseek_runtime.server.errors import ApiError, from_validation
from deepseek_runtime.server.fields import Body
from deepseek_runtime.server.schemas import ChatBody

PASSED = frozenset(
    {
        "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
        "stop", "stop_token_ids", "ignore_eos", "min_tokens", "thinking", "reasoning_effort", "chat_template_kwargs",
        "priority", "timeout",
    }
)  # fmt: skip
"""Fields of chat requests that these APIs have no word for. They mean here what they mean there."""


class LayerBody(Body, ABC):
    """A body that can be said as a chat request.

    `ignored` are fields that clients send as a matter of course and that change nothing; `names` tells how the fields
    of the chat request are called here, where a complaint may name them.
    """

    ignored: ClassVar[frozenset[str]] = frozenset()
    names: ClassVar[Mapping[str, str]] = {}

    model: str
    stream: bool = False

    @abstractmethod
    def chat_fields(self) -> dict[str, Any]:
        """The body of the chat request, without what is passed on as it is."""

    def to_chat(self) -> ChatBody:
        """The chat request; ApiError 400 if it is none, in this API's words."""
        extra = self.model_extra or {}
        passed = {name: extra[name] for name in PASSED & set(extra)}
        with self.complaints():
            try:
                return ChatBody.model_validate(passed | {"model": self.model} | self.chat_fields())
            except ValidationError as error:
                raise from_validation(error) from error

    @classmethod
    @contextmanager
    def complaints(cls) -> Iterator[None]:
        """Whatever the core complains about in here, it calls the fields by the names of this API."""
        try:
            yield
        except ApiError as error:
            raise _renamed(error, cls.names) from error

    @property
    def unknown_fields(self) -> set[str]:
        """Names of fields that have no effect, which their sender may not know."""
        return set(self.model_extra or ()) - PASSED - self.ignored


def _renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    field, _, rest = (error.param or "").partition(".")
    message = error.message
    for theirs, ours in names.items():
        message = re.sub(rf"^{theirs}(?=[:. ])", ours, message)
    param = ".".join(part for part in (names.get(field, field), rest) if part) or None
    return ApiError(error.status, message, code=error.code, param=param, type_=error.type)


def refused(why: str) -> AfterValidator:
    """For a field that would change the answer and cannot be honoured: any value that says something is an error."""

    def refuse(value: object) -> object:
        if value:
            raise ValueError(why)
        return value

    return AfterValidator(refuse)


def only_types(*known: str, what: str, default: str | None = None) -> BeforeValidator:
    """For a list of objects told apart by `type`: names the first whose type is not known. `what` is their name."""

    def check(value: object) -> object:
        for number, item in enumerate(value if isinstance(value, list) else ()):
            type_ = item.get("type", default) if isinstance(item, dict) else default
            if type_ not in known:
                raise ValueError(f"{what} {number} is of type {type_!r}, only {_listed(known)} can be used here")
        return value

    return BeforeValidator(check)


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(", ".join(map(repr, names)).rsplit(", ", 1))


def as_list(item: Any, wrap: Callable[[str], dict[str, Any]], least: int = 0) -> BeforeValidator:
    """For a list of at least so many items, objects each, that may also be written as one text."""
    written = str | Annotated[list[item], Field(min_length=least)]
    return BeforeValidator(
        lambda value: [wrap(value)] if isinstance(value, str) else value, json_schema_input_type=written
    )


def text_part(text: str) -> dict[str, Any]:
    """A text as a part of a chat message."""
    return {"type": "text", "text": text}


def made_call(id_: str, name: str, arguments: str | dict[str, Any]) -> dict[str, Any]:
    """A call of an earlier turn, as a chat message has it."""
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
