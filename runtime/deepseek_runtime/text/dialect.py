"""How one release writes reasoning and tool calls, found out from the checkpoint's own chat template.

Template and parser can then never be of two releases: what the template is seen to write is what the parser reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Literal

from jinja2 import Template, TemplateError

from deepseek_runtime.text.sandbox import TemplateRefusal, compile_template, render
from deepseek_runtime.text.tokenizer import CheckpointError, Tokenizer

THINKING_VARIABLES = ("thinking", "enable_thinking")


@dataclass(frozen=True, slots=True)
class ToolForm:
    """The wire form of tool calls and of their results.

    A fenced call is `function<sep>NAME`, a line break and the arguments in a fenced block; a bare one
    `NAME<sep>ARGUMENTS`. Results are written in the order of the calls.
    """

    style: Literal["fenced", "bare"]
    calls_begin: str = "<｜tool▁calls▁begin｜>"
    call_begin: str = "<｜tool▁call▁begin｜>"
    separator: str = "<｜tool▁sep｜>"
    call_end: str = "<｜tool▁call▁end｜>"
    calls_end: str = "<｜tool▁calls▁end｜>"
    results_begin: str = ""
    result_begin: str = "<｜tool▁output▁begin｜>"
    result_end: str = "<｜tool▁output▁end｜>"
    results_end: str = ""

    @property
    def markers(self) -> frozenset[str]:
        """What a model writes around its calls."""
        return frozenset({self.calls_begin, self.call_begin, self.separator, self.call_end, self.calls_end})

    @property
    def between(self) -> str:
        """What stands between two calls, and between two results."""
        return "\n" if self.style == "fenced" else ""

    def around(self, name: str) -> tuple[str, str]:
        """What stands in a call of a tool before and behind the arguments, inside of the call's own marks."""
        if self.style == "fenced":
            return f"function{self.separator}{name}\n```json\n", "\n```"
        return name + self.separator, ""

    def write_call(self, name: str, arguments: str) -> str:
        """One call; `arguments` is JSON text."""
        before, behind = self.around(name)
        return self.call_begin + before + arguments + behind + self.call_end

    def write_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        """All calls of a turn, each a name and its arguments as JSON text."""
        return self.calls_begin + self.between.join(starmap(self.write_call, calls)) + self.calls_end

    def write_results(self, results: Sequence[str]) -> str:
        """The results of a turn's calls, in the order of the calls."""
        written = (self.result_begin + result + self.result_end for result in results)
        return self.results_begin + self.between.join(written) + self.results_end


FENCED = ToolForm("fenced", results_begin="<｜tool▁outputs▁begin｜>", results_end="<｜tool▁outputs▁end｜>")
BARE = ToolForm("bare")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The wire forms of one release.

    `think_begin` and `think_end` are empty where there is no reasoning. `opening` is what a prompt ends with when the
    answer is to begin with reasoning. `variable` is the template variable that switches thinking on and off.
    `tools` is None where no form of tool calls is known: such a model cannot be given tools.
    """

    name: str
    think_begin: str = ""
    think_end: str = ""
    opening: str = ""
    thinking: Literal["never", "always", "switch"] = "never"
    variable: str | None = None
    tools: ToolForm | None = None

    @property
    def markers(self) -> frozenset[str]:
        """Texts that must be seen by the parser though the tokenizer may call them special."""
        thinking = {self.think_begin, self.think_end} - {""}
        return frozenset(thinking) | (self.tools.markers if self.tools else frozenset())

    def starts_in_reasoning(self, prompt_text: str) -> bool:
        """Whether the answer to a rendered prompt begins inside of reasoning: its last `think_begin` is still open."""
        if not self.think_begin:
            return False
        _, begin, behind = prompt_text.rpartition(self.think_begin)
        return bool(begin) and self.think_end not in behind

    def split(self, text: str) -> tuple[str, str]:
        """Reasoning and content of an assistant's text that may still have both."""
        before, end, content = text.rpartition(self.think_end) if self.think_end else ("", "", text)
        if end:
            return before.lstrip().removeprefix(self.think_begin).strip("\n"), content.lstrip("\n")
        if self.think_begin and text.lstrip().startswith(self.think_begin):
            return text.lstrip().removeprefix(self.think_begin).lstrip("\n"), ""
        return "", text

    def resume(self, reasoning: str, content: str) -> str:
        """An assistant's turn from the beginning of its reasoning on; without content it goes on reasoning."""
        closing = f"\n{self.think_end}\n\n" if self.opening.endswith("\n") else self.think_end
        return self.opening + reasoning + (closing + content if content else "")


PLAIN = Dialect("plain")


def choose_dialect(template_source: str, tokenizer: Tokenizer) -> Dialect:
    """The dialect of a checkpoint; CheckpointError for a template that cannot be parsed."""
    try:
        template = compile_template(template_source)
    except TemplateError as error:
        raise CheckpointError(f"the chat template cannot be parsed: {error}") from error
    if "<｜Assistant｜>" not in template_source:
        return PLAIN
    if "</think>" not in template_source:
        return Dialect("deepseek-v3", tools=_tool_form(template_source, switched=False))
    variable, opening = _thinking(template, tokenizer)
    tools = _tool_form(template_source, switched=variable is not None)
    return Dialect(
        name="deepseek-r1" if variable is None else "deepseek-v3.1",
        think_begin="<think>",
        think_end="</think>",
        opening=opening,
        thinking="always" if variable is None else "switch",
        variable=variable,
        tools=tools,
    )


def _tool_form(source: str, *, switched: bool) -> ToolForm | None:
    """The form that a template writes calls in; its release's where it writes none; None for one that is not known."""
    if BARE.separator in source:
        return FENCED if "```json" in source else BARE
    if "tool_calls" in source:
        return None
    return BARE if switched else FENCED


def _thinking(template: Template, tokenizer: Tokenizer) -> tuple[str | None, str]:
    """The variable that switches reasoning, if one does, and how a prompt ends that makes the answer begin with it."""
    endings = {name: [_opening(text) for text in _prompts(template, tokenizer, name)] for name in THINKING_VARIABLES}
    for name, (on, off) in endings.items():
        if on and not off:
            return name, on
    return None, endings[THINKING_VARIABLES[0]][1] or "<think>\n"


def _prompts(template: Template, tokenizer: Tokenizer, variable: str) -> Iterator[str]:
    """A short prompt with a variable on, then off; empty where the template refuses it."""
    for value in (True, False):
        values: dict[str, Any] = {
            "messages": [{"role": "user", "content": "?"}],
            "add_generation_prompt": True,
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
            variable: value,
        }
        try:
            yield render(template, values)
        except TemplateRefusal:
            yield ""


def _opening(prompt: str) -> str:
    """The end of a prompt from an open `<think>` on, empty if there is none."""
    _, begin, behind = prompt.rpartition("<think>")
    return begin + behind if begin and "</think>" not in behind else ""
