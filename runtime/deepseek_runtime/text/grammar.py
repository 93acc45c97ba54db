"""What an answer must look like, as masks over tokens: JSON, JSON of a schema, tool calls in the dialect's wire form.

Built on llguidance. The constraint is one grammar over the whole answer, the reasoning in front included, so that a
token may span the place where the constrained part begins. The answer may end exactly where the grammar is complete.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from deepseek_runtime.text.dialect import Dialect, ToolForm
from deepseek_runtime.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

CACHED_GRAMMARS = 256
MOST_CALLS = 32
"""Calls of one answer. A weak model that must call something never stops calling by itself."""

ANY_TEXT = "/(?s:.*)/"

# One blank, or a new line with its indentation: what people and models write. Without a bound a weak model fills its
# whole answer with blanks, which are valid JSON for ever.
_WHITESPACE = r"( |\n {0,32})?"

Schema = Mapping[str, Any] | bool


class GrammarError(ValueError):
    """A schema that cannot be enforced; the sentence names the keyword."""


@dataclass(frozen=True, slots=True)
class JsonForm:
    """JSON that a schema accepts. Keywords that cannot be enforced are refused, or without `strict` ignored."""

    schema: Schema
    strict: bool = False


ANY_OBJECT = JsonForm({"type": "object"}, strict=True)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. Without `strict`, keywords that cannot be enforced are left out."""

    name: str
    parameters: Schema
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled constraint, to be shared by any number of answers."""

    start: LLMatcher
    size: int

    def mask(self) -> GrammarMask:
        """The constraint's state for one answer."""
        return GrammarMask(self.start.deep_copy(), self.size)


class GrammarMask:
    """An `engine.sampling.TokenMask`: which tokens may follow those generated so far.

    The parser stands behind the tokens it was asked about last, and is rolled back to where another question differs.
    """

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size
        self._consumed: list[int] = []

    def __call__(self, generated: Sequence[int], /) -> NDArray[np.bool_]:
        """[V], all False where nothing may follow: what was not allowed came, or the grammar is beyond the parser."""
        common = _common(self._consumed, generated)
        self._matcher.rollback(len(self._consumed) - common)
        taken = common + self._matcher.try_consume_tokens(list(generated[common:]))
        self._consumed = list(generated[:taken])
        if taken < len(generated):
            return np.zeros(self._size, dtype=np.bool_)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            logger.warning("an answer cannot be followed: %s", self._matcher.get_error().partition("\n")[0])
        return np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)


class Grammars:
    """Compiles constraints for one checkpoint. Any thread may call it; equal constraints are compiled once."""

    def __init__(self, tokenizer: Tokenizer, dialect: Dialect) -> None:
        self._tokenizer = tokenizer
        self._dialect = dialect
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)

    def prepare(self) -> None:
        """Read the vocabulary ahead of the first request. Where it cannot be read, the log says so, no more."""
        try:
            self._ready_vocabulary()
        except GrammarError as error:
            logger.warning("%s", error)

    def json(self, form: JsonForm, *, in_reasoning: bool = False) -> Grammar:
        """An answer that is JSON of a form; GrammarError for a schema that cannot be enforced."""
        self._check(form.schema, form.strict)
        return self._finish(f"answer: {_json(form.schema, form.strict)}\n", in_reasoning)

    def tool_calls(
        self,
        tools: Sequence[Tool],
        *,
        choice: str,
        parallel: bool = True,
        in_reasoning: bool = False,
        content: JsonForm | None = None,
    ) -> Grammar:
        """Calls of tools with arguments that their schemas accept.

        `choice` is `auto` for text that calls may follow, `required` for at least one call, or the name of a tool. With
        a form for the `content`, `auto` is either calls or JSON of that form.
        """
        form = self._dialect.tools
        if form is None:
            raise GrammarError("this model's chat template has no known form for tool calls")
        named = [tool for tool in tools if choice in ("auto", "required", tool.name)]
        if not named:
            raise GrammarError(f"there is no tool {choice!r} to call, only {', '.join(tool.name for tool in tools)}")
        for tool in named:
            self._check(tool.parameters, tool.strict, f"tool {tool.name!r}: ")
        if content:
            self._check(content.schema, content.strict)
        rules = self._call_rules(form, named, parallel=parallel and choice in ("auto", "required"))
        if choice != "auto" or content:
            rules += f"answer: {self._spell(form.calls_begin)} calls"
            rules += f" | {_json(content.schema, content.strict)}\n" if choice == "auto" and content else "\n"
            return self._finish(rules, in_reasoning)
        return self._finish(rules + self._optional(form.calls_begin, "calls"), in_reasoning)

    def _call_rules(self, form: ToolForm, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The rule `calls`: what follows the mark that begins a block of calls."""
        lines = []
        for number, tool in enumerate(tools):
            lines.append(f"arguments_{number}: {_json(tool.parameters, tool.strict)}")
            before, behind = form.around(tool.name)
            opening, closing = self._spell(form.call_begin + before), self._spell(behind + form.call_end)
            lines.append(f"call_{number}: {opening} arguments_{number} {closing}")
        more = f" ({self._spell(form.between)} call){{0,{MOST_CALLS - 1}}}" if parallel else ""
        lines.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
        lines.append(f"calls: call{more} {self._spell(form.calls_end)}")
        return "\n".join(lines) + "\n"

    def _spell(self, text: str) -> str:
        """Text in a rule: markers as tokens where they are tokens, all else by its letters."""
        tokens = [marker for marker in self._dialect.markers if self._token(marker) is not None]
        parts = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text) if tokens else [text]
        return " ".join(f"<[{self._token(part)}]>" if part in tokens else _quoted(part) for part in parts if part)

    def _optional(self, mark: str, rest: str) -> str:
        """The rule `answer`: text, and perhaps a mark with what must follow it."""
        if self._token(mark) is not None:
            return f"answer: TEXT ({self._spell(mark)} {rest})?\nTEXT: {ANY_TEXT}\n"
        without = f"{ANY_TEXT} & ~/(?s:.*){_escaped(mark)}(?s:.*)/"
        return f"answer: up_to_mark {rest} | TEXT\n{self._up_to('up_to_mark', mark)}TEXT: {without}\n"

    def _up_to(self, name: str, mark: str) -> str:
        """A rule: text until a mark comes, and the mark."""
        if self._token(mark) is not None:
            return f"{name}: {name.upper()} {self._spell(mark)}\n{name.upper()}: {ANY_TEXT}\n"
        return f"{name}[suffix={_quoted(mark)}]: {ANY_TEXT}\n"

    def _finish(self, rules: str, in_reasoning: bool) -> Grammar:
        """A grammar for the rule `answer`, behind the end of the reasoning where the prompt leaves it open."""
        mark = self._dialect.think_end
        if not in_reasoning or not mark:
            return self._compiled(f"start: answer\n{rules}")
        return self._compiled(f"start: thought /\\n{{0,2}}/ answer\n{self._up_to('thought', mark)}{rules}")

    def _token(self, text: str) -> int | None:
        """The id of a marker that is a token of its own. The library keeps such tokens apart from ordinary text."""
        return self._tokenizer.added_ids.get(text)

    def _check(self, schema: Schema, strict: bool, where: str = "") -> None:
        """Compile a schema alone, for a complaint that is about it."""
        try:
            self._compiled(f"start: {_json(schema, strict)}\n")
        except GrammarError as error:
            raise GrammarError(f"{where}{error}") from error

    def _compile(self, lark: str) -> Grammar:
        source = LLMatcher.grammar_from_lark(lark)
        failed, messages = LLMatcher.validate_grammar_with_warnings(source, self._ready_vocabulary())
        if failed:
            raise GrammarError(_readable(messages[0]))
        return Grammar(LLMatcher(self._ready_vocabulary(), source, log_level=0), self._tokenizer.size)

    def _ready_vocabulary(self) -> LLTokenizer:
        """The tokens as the library wants them; takes a second for 129,280 of them."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._read_vocabulary()
            return self._vocabulary

    def _read_vocabulary(self) -> LLTokenizer:
        ends = sorted(self._tokenizer.stop_ids) or None
        try:
            return LLTokenizer(self._tokenizer.fast.to_str(), n_vocab=self._tokenizer.size, eos_token=ends)
        except Exception as error:  # the library has no class of its own for a tokenizer that it cannot read
            raise GrammarError(f"no form can be enforced with this model's tokenizer: {error}") from error


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the beginning that both have; at once where one is the other's beginning, as between two steps."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)


def _json(schema: Schema, strict: bool) -> str:
    """A rule's body for JSON of a schema. What the schema itself asks of the library does not count."""
    content = {"not": {}} if schema is False else {} if schema is True else dict(close_objects(schema))
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict}
    return "%json " + json.dumps({**content, "x-guidance": options}, ensure_ascii=False)


def close_objects(schema: Any) -> Any:
    """The schema without properties that nobody asked for, wherever it names some and does not speak of others.

    That is a part of what the schema accepts, and what is meant: a model would go on inventing properties. Left as it
    is where objects are put together from several schemas, of which each must accept what the others name.
    """
    return schema if _composed(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed_under(key, value) for key, value in schema.items()}
    open_ = bool(schema.get("properties")) and not {"additionalProperties", "patternProperties"} & schema.keys()
    return {**inner, "additionalProperties": False} if open_ else inner


def _closed_under(key: str, value: Any) -> Any:
    """The value of a keyword: schemas by name, plain values, or a schema or several."""
    if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
        return {name: _closed(part) for name, part in value.items()}
    return value if key in ("enum", "const", "default", "examples") else _closed(value)


def _composed(schema: Any) -> bool:
    """Whether anywhere in it an object's properties come from more than one schema."""
    if isinstance(schema, list):
        return any(map(_composed, schema))
    if not isinstance(schema, dict):
        return False
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    mixed = "properties" in schema and bool({"allOf", "anyOf", "oneOf", "$ref", "dependentSchemas"} & schema.keys())
    return several or mixed or any(map(_composed, schema.values()))


def _quoted(text: str) -> str:
    """Text as a literal of a rule."""
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Text inside a regular expression of a rule."""
    return "".join(f"\\x{{{ord(character):x}}}" if not character.isalnum() else character for character in text)


def _readable(message: str) -> str:
    """The library's complaint, which quotes the grammar, as a sentence about the schema."""
    text = message.partition("failed to compile JSON schema: ")[2] or message
    if keys := re.match(r"Unimplemented keys: \[(.*?)\]", text):
        return f"the schema uses {keys[1].replace(chr(34), chr(39))}, which cannot be enforced"
    reasons = re.findall(r"^error: (.*)$", text, re.MULTILINE) or text.splitlines()
    return f"the schema cannot be enforced: {reasons[0]}"
