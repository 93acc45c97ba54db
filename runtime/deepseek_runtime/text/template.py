"""The checkpoint's own chat template, given messages in the one shape that it takes, and encoded piece by piece.

A template that knows tool calls gets them as they are; for any other they are written out in the dialect's wire form.
Which it is, is found out when it is loaded, by letting it write a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from deepseek_runtime.text.dialect import PLAIN, ToolForm, choose_dialect
from deepseek_runtime.text.messages import GUARD, Call, Guard, Messages, Turn, as_message, named_function, read_turns
from deepseek_runtime.text.sandbox import TemplateRefusal, compile_template, render
from deepseek_runtime.text.tokenizer import CheckpointError, Tokenizer, read_json
from deepseek_runtime.text.tools import define, fold, gather_system

__all__ = ["ChatTemplate", "Messages", "Prompt", "TemplateRefusal"]

Tools = Sequence[Mapping[str, Any]]
Shape = Callable[[Turn], dict[str, Any]]

_CUT = "\udc00"
"""Stands for the content that is to be continued, until the template has shown where it belongs; in no real text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a conversation, ready to be continued; `in_reasoning` if what comes first is reasoning."""

    ids: list[int]
    in_reasoning: bool


class ChatTemplate:
    """Renders a conversation to text and encodes it, with exactly one beginning-of-sequence token in front.

    None at all where a template of another family writes none.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        source = _source(folder)
        try:
            self._template = compile_template(source)
        except TemplateError as error:
            raise CheckpointError(f"{folder}: the chat template cannot be parsed: {error}") from error
        self.dialect = choose_dialect(source, tokenizer)
        spelled = tokenizer.special_ids if self.dialect == PLAIN else tokenizer.added_ids
        self._guard = Guard({*spelled, *self.dialect.markers})
        self._defines_tools = "probing" in self._try([_USER], tools=[_PROBE_TOOL])
        self._shape = self._shape_of_calls()

    def encode(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        proceed: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt that a conversation makes.

        With `proceed` the last message is the beginning of the assistant's turn, to be continued right behind its last
        character. `variables` are passed to the template. Raises TemplateRefusal for what it does not take.
        """
        text = self._render(messages, tools=tools, proceed=proceed, variables=variables)
        ids = [id_ for piece in text.split(GUARD) for id_ in self._tokenizer.encode(piece)]
        bos = self._tokenizer.bos_id
        if bos is not None and (self.dialect != PLAIN or bos in ids):
            ids = [bos, *(id_ for id_ in ids if id_ != bos)]
        return Prompt(ids, self.dialect.starts_in_reasoning(text))

    def render(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        proceed: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text, in which what a client wrote cannot be told from what the template wrote."""
        return self._render(messages, tools=tools, proceed=proceed, variables=variables).replace(GUARD, "")

    def _render(
        self, messages: Messages, *, tools: Tools | None, proceed: bool, variables: Mapping[str, Any] | None
    ) -> str:
        """The conversation with GUARD in the client's texts."""
        try:
            turns = read_turns(messages, self._guard, self.dialect.split)
            given, values = self._guard.deep([list(tools or ()), dict(variables or {})])
        except RecursionError:
            raise TemplateRefusal("the messages, tools or template variables are nested too deeply") from None
        if given and self.dialect.tools is None:
            raise TemplateRefusal("this model's chat template has no known form for tool calls")
        begun = _begun(turns) if proceed else None
        if begun:
            turns[-1] = replace(begun, content=_CUT, reasoning="")
        text = self._write(self._arrange(turns, given), given, values)
        return self._resume(text, begun) if begun else text

    def _arrange(self, turns: list[Turn], tools: Tools) -> list[dict[str, Any]]:
        """Turns as messages for the template: instructions in front, tools in the form that it takes."""
        form = self.dialect.tools
        if self.dialect == PLAIN:
            return [as_message(turn) for turn in turns]
        if self.dialect.think_end:
            turns = [replace(turn, reasoning="") for turn in turns]
        functions = [named_function(f"tools[{number}]", tool) for number, tool in enumerate(tools)]
        told = define(functions, form) if form and functions and not self._defines_tools else ""
        turns = gather_system(turns, told)
        if form and self._shape is None:
            goes_on = [Turn("", "assistant", _CUT)] if turns and turns[-1].role == "tool" else []
            turns = fold([*turns, *goes_on], form, self._tokenizer.eos_token or "")
        return [(self._shape or as_message)(turn) for turn in turns]

    def _write(self, messages: list[dict[str, Any]], tools: Tools, variables: Mapping[str, Any]) -> str:
        """What the template makes of messages, up to where the last one is to be continued."""
        begun = bool(messages) and _CUT in (messages[-1]["content"] or "")
        values = {
            **variables,
            "messages": messages,
            "add_generation_prompt": not begun,
            "bos_token": self._tokenizer.bos_token or "",
            "eos_token": self._tokenizer.eos_token or "",
            "tools": (tools or None) if self._defines_tools else None,
        }
        text = render(self._template, values)
        head, cut, _ = text.partition(_CUT)
        if begun and not cut:
            raise TemplateRefusal("the model's chat template does not show the last message, which is to be continued")
        return head

    def _resume(self, head: str, begun: Turn) -> str:
        """The prompt with the turn that the assistant has begun, its reasoning included if it came with some."""
        dialect = self.dialect
        if begun.reasoning and dialect.think_begin:
            return head.removesuffix(dialect.think_end) + dialect.resume(begun.reasoning, begun.content)
        if not begun.content:
            raise TemplateRefusal(f"{begun.place}.content: must have text, to be continued")
        return head + begun.content

    def _try(self, turns: Sequence[Turn], shape: Shape = as_message, tools: Tools = ()) -> str:
        """What the template makes of some turns, empty if it refuses them."""
        values = {"messages": [shape(turn) for turn in turns], "add_generation_prompt": True, "tools": tools or None}
        marks = {"bos_token": self._tokenizer.bos_token or "", "eos_token": self._tokenizer.eos_token or ""}
        try:
            return render(self._template, values | marks)
        except TemplateRefusal:
            return ""

    def _shape_of_calls(self) -> Shape | None:
        """The messages that this template writes tool calls of in the dialect's form; None if it does not do so."""
        form = self.dialect.tools
        if form is None:
            return as_message
        kinds = product((True, False), (True, False))
        shapes = (partial(as_message, arguments_as_text=text, empty_is_null=null) for text, null in kinds)
        return next((shape for shape in shapes if _writes_calls(self._try(_PROBE, shape), form)), None)


_USER = Turn("", "user", "?")
_TWO = (Call("1", "one", '{"a": 1}'), Call("2", "two", "{}"))
_THREE = (Call("3", "three", '{"b": [2]}'),)
_PROBE = (
    _USER,
    Turn("", "assistant", calls=_TWO),
    Turn("", "tool", "first", call_id="1"),
    Turn("", "tool", "second", call_id="2"),
    Turn("", "assistant", "said"),
    _USER,
    Turn("", "assistant", "telling", calls=_THREE),
    Turn("", "tool", "third", call_id="3"),
)
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "probing", "parameters": {"type": "object", "properties": {}}},
}


def _writes_calls(text: str, form: ToolForm) -> bool:
    """Whether a template wrote the probe's calls and results right: each once, and nothing behind the last result."""
    parts = ["first", "second"], ["third"]
    two, three = (form.write_calls([(call.name, call.arguments) for call in calls]) for calls in (_TWO, _THREE))
    wanted = [two, form.write_results(parts[0]), "said", "telling" + three]
    return all(text.count(one) == 1 for one in wanted) and text.endswith(form.write_results(parts[1]))


def _begun(turns: Sequence[Turn]) -> Turn:
    """The turn that is to be continued."""
    if not turns or turns[-1].role != "assistant" or turns[-1].calls:
        raise TemplateRefusal(
            "only an assistant's message without tool calls can be continued, and it must be the last"
        )
    return turns[-1]


def _source(folder: Path) -> str:
    """The template's text: `chat_template.jinja` if there is one, else the entry of tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates: the one called default
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise CheckpointError(f"{folder}: neither chat_template.jinja nor a chat_template in tokenizer_config.json")
    return template
