"""Tools for templates that do not know any: definitions in the system prompt, calls and results as part of a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deepseek_runtime.text.dialect import ToolForm
from deepseek_runtime.text.messages import Turn
from deepseek_runtime.text.sandbox import TemplateRefusal, to_json

_INTRODUCTION = """You have these functions. Each is listed with its purpose and the JSON schema of its arguments.

{functions}

When a function helps with an answer, call it by writing exactly this, with its name and a JSON object of arguments:

{example}

If you need several calls that do not depend on each other, put them all between the outer marks. Write nothing behind
the last mark: the results come next. Call only functions of this list, and answer in plain text when you need none."""


def define(functions: Sequence[Mapping[str, Any]], form: ToolForm) -> str:
    """What a model has to be told about the functions that it may call."""
    listed = "\n\n".join(map(_define, functions))
    return _INTRODUCTION.format(functions=listed, example=form.write_calls([("NAME", "ARGUMENTS")]))


def _define(function: Mapping[str, Any]) -> str:
    purpose = function.get("description")
    parameters = to_json(function.get("parameters") or {"type": "object", "properties": {}})
    return "\n".join(filter(None, [f"## {function['name']}", str(purpose or ""), f"Arguments: {parameters}"]))


def gather_system(turns: Sequence[Turn], *more: str) -> list[Turn]:
    """All system messages made one in front, where the model has seen its instructions, with more text behind them."""
    system = [turn for turn in turns if turn.role == "system"]
    text = "\n\n".join(filter(None, [*(turn.content for turn in system), *more]))
    first = [replace(system[0], content=text)] if system else [Turn("tools", "system", text)] if text else []
    return [*first, *(turn for turn in turns if turn.role != "system")]


def fold(turns: Sequence[Turn], form: ToolForm, eos: str) -> list[Turn]:
    """Turns without calls and results: an assistant's turn has all of them, up to its final words, in its content.

    A template puts the assistant's mark in front of such a turn, and nothing between results and what the model says
    to them, which is how the model has seen it.
    """
    folded: list[Turn] = []
    for number, turn in enumerate(turns):
        previous = turns[number - 1].role if number else ""
        if turn.role == "tool":
            if previous != "tool":
                _append(folded, turn, eos + form.write_results(_results(turns[number:])))
        elif turn.role == "assistant" and previous == "tool":
            _append(folded, turn, _said(turn, form))
        else:
            folded.append(replace(turn, content=_said(turn, form), calls=()))
    return folded


def _results(turns: Sequence[Turn]) -> list[str]:
    """The contents of the results that a list of turns begins with."""
    end = next((number for number, turn in enumerate(turns) if turn.role != "tool"), len(turns))
    return [turn.content for turn in turns[:end]]


def _said(turn: Turn, form: ToolForm) -> str:
    calls = [(call.name, call.arguments) for call in turn.calls]
    return turn.content + (form.write_calls(calls) if calls else "")


def _append(folded: list[Turn], turn: Turn, text: str) -> None:
    """Add to the assistant's turn that is going on."""
    if not folded or folded[-1].role != "assistant":
        raise TemplateRefusal(f"{turn.place}: is the result of a tool, but no assistant message before it calls one")
    folded[-1] = replace(folded[-1], content=folded[-1].content + text)
