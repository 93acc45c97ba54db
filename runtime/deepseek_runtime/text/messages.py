"""Messages as clients send them, brought into one form: what a turn says, thinks, calls, or is the result of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepseek_runtime.text.sandbox import TemplateRefusal, to_json
from deepseek_runtime.text.stops import NEVER

Messages = Sequence[Mapping[str, Any]]

GUARD = "\ud800"
"""Breaks the spelling of a special token in a client's text. Half of a surrogate pair: no text contains one."""

_ROLES = {"developer": "system", "function": "tool"}
_READ = {"role", "content", "tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "prefix"}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `rest` is what only some templates know; `place` names the message in complaints."""

    place: str
    role: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)


class Guard:
    """Makes sure that a client's text stays text: no special token that it spells out is read as one.

    Every occurrence is broken behind its first character; the parts on both sides of a break are encoded alone.
    """

    def __init__(self, spellings: Iterable[str]) -> None:
        wanted = [one for one in spellings if len(one) > 1]
        self._pattern = re.compile(_any_of(wanted) if wanted else NEVER)

    def text(self, text: str) -> str:
        """A text without anything special, with GUARD wherever there was."""
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which cannot be encoded
            text = text.encode(errors="replace").decode()
        parts, start = [], 0
        while found := self._pattern.search(text, start):  # from the break on: spellings may overlap
            parts.append(text[start : found.start() + 1])
            start = found.start() + 1
        return GUARD.join([*parts, text[start:]])

    def deep(self, value: Any) -> Any:
        """The same for all texts inside of a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.deep(key): self.deep(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.deep(inner) for inner in value]
        return value


def _any_of(words: Iterable[str]) -> str:
    """A pattern for where one of some words begins. A letter that many share is tried once, not once for each."""
    rests: dict[str, list[str]] = {}
    for word in words:
        if not word:
            return ""
        rests.setdefault(word[0], []).append(word[1:])
    branches = [re.escape(letter) + _any_of(rest) for letter, rest in sorted(rests.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def read_turns(messages: Messages, guard: Guard, split: Callable[[str], tuple[str, str]]) -> list[Turn]:
    """All messages as turns, results in the order of their calls.

    `split` takes an assistant's text apart into reasoning and content. Raises TemplateRefusal for a message that is
    none, naming it.
    """
    turns = [_read(f"messages[{number}]", message, guard, split) for number, message in enumerate(messages)]
    return _in_order_of_calls(turns)


def _read(place: str, message: Mapping[str, Any], guard: Guard, split: Callable[[str], tuple[str, str]]) -> Turn:
    role = message.get("role")
    if not isinstance(role, str):
        raise TemplateRefusal(f"{place}: has no role")
    content, reasoning = _text(place, message.get("content")), ""
    calls: tuple[Call, ...] = ()
    if role == "assistant":
        thought, content = split(content)
        given = message.get("reasoning_content") or message.get("reasoning")
        reasoning = guard.text(given if isinstance(given, str) else thought)
        calls = _calls(place, message, guard)
    return Turn(
        place=place,
        role=_ROLES.get(role, role),
        content=guard.text(content),
        reasoning=reasoning,
        calls=calls,
        call_id=guard.text(str(message.get("tool_call_id") or "")),
        rest={key: guard.deep(value) for key, value in message.items() if key not in _READ},
    )


def _text(place: str, content: Any) -> str:
    """Content as one text: null is empty, parts are joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in _list(place, "content", content):
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise TemplateRefusal(f"{place}.content: must be a text or a list of parts that are texts")
        texts.append(text)
    return "".join(texts)


def _calls(place: str, message: Mapping[str, Any], guard: Guard) -> tuple[Call, ...]:
    """The calls of a turn; one in the old field `function_call` counts as well."""
    given = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    calls = enumerate(_list(place, "tool_calls", given))
    return tuple(_call(f"{place}.tool_calls[{number}]", call, guard) for number, call in calls)


def _call(place: str, call: Any, guard: Guard) -> Call:
    function = named_function(place, call)
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else to_json({} if arguments is None else arguments)
    return Call(guard.text(str(call.get("id") or "")), guard.text(function["name"]), guard.text(text or "{}"))


def named_function(place: str, value: Any) -> Mapping[str, Any]:
    """The function that a tool or a call is about; TemplateRefusal if it has no name."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise TemplateRefusal(f"{place}: names no function")
    return function


def _list(place: str, name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise TemplateRefusal(f"{place}.{name}: must be a list, not {type(value).__name__}")
    return value


def _in_order_of_calls(turns: list[Turn]) -> list[Turn]:
    """Results sorted by the calls that they answer: the wire form has no ids, only the order tells."""
    ordered: list[Turn] = []
    order: dict[str, int] = {}
    for turn in turns:
        if turn.role != "tool":
            order = {call.id: number for number, call in enumerate(turn.calls) if call.id}
        ordered.append(turn)
        start = len(ordered)
        while start and ordered[start - 1].role == "tool":
            start -= 1
        ordered[start:] = sorted(ordered[start:], key=lambda result: order.get(result.call_id, len(order)))
    return ordered


def as_message(turn: Turn, *, arguments_as_text: bool = True, empty_is_null: bool = False) -> dict[str, Any]:
    """A turn for a template that writes tool calls itself, in the shape that it reads."""
    message: dict[str, Any] = {**turn.rest, "role": turn.role, "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.call_id:
        message["tool_call_id"] = turn.call_id
    if turn.calls:
        message["content"] = turn.content or (None if empty_is_null else "")
        message["tool_calls"] = [_as_call(turn.place, call, as_text=arguments_as_text) for call in turn.calls]
    return message


def _as_call(place: str, call: Call, *, as_text: bool) -> dict[str, Any]:
    arguments: Any = call.arguments
    if not as_text:
        try:
            arguments = json.loads(call.arguments)
        except ValueError as error:
            raise TemplateRefusal(f"{place}: the arguments of {call.name!r} are not JSON: {error}") from error
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
