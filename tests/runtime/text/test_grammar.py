"""Grammars: what a model is allowed to write is valid, and what is valid it is allowed to write."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel

from deepseek_runtime.settings import checkpoint_folder
from deepseek_runtime.text.dialect import BARE, FENCED, Dialect, ToolForm
from deepseek_runtime.text.grammar import ANY_OBJECT, MOST_CALLS, Grammar, GrammarError, Grammars, JsonForm, Tool
from deepseek_runtime.text.tokenizer import Tokenizer
from random_schemas import random_schema

MANY = 4000
DIALECTS = {
    "fenced": Dialect("deepseek-r1", "<think>", "</think>", tools=FENCED),
    "bare": Dialect("deepseek-v3.1", "<think>", "</think>", tools=BARE),
}
PLACE = {"type": "object", "properties": {"city": {"enum": ["Ulm", "Rom"]}}, "required": ["city"]}
CLOSED = {**PLACE, "additionalProperties": False}
TOOLS = [
    Tool("weather", CLOSED, strict=True),
    Tool("add", {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}),
]


@pytest.fixture(scope="module", params=["text", "tokens", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tutor's, in which markers are ordinary text; and ones in which each is a token, special or not."""
    if request.param == "text":
        return Tokenizer(checkpoint_folder("tutor"))
    return Tokenizer(with_tokens(tmp_path_factory.mktemp("tokenizer"), special=request.param == "special"))


def with_tokens(folder: Path, *, special: bool) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((checkpoint_folder("tutor") / name).read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    content["added_tokens"] += [
        {"id": 720 + i, "content": text, **rules} for i, text in enumerate(sorted(DIALECTS["fenced"].markers))
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module", params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return DIALECTS[request.param]


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer, dialect: Dialect) -> Grammars:
    return Grammars(tokenizer, dialect)


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a model could write this text and end there."""
    mask = grammar.mask()
    ids = [*tokenizer.encode(text), *sorted(tokenizer.stop_ids)[:1]]
    return all(mask(ids[:count])[id_] for count, id_ in enumerate(ids))


def babble(grammar: Grammar, tokenizer: Tokenizer, seed: int, most: int = MANY) -> str:
    """What a model without any sense writes under the grammar, which makes it end."""
    choose, mask, ids = random.Random(seed), grammar.mask(), list[int]()
    while len(ids) < most:
        allowed = mask(ids).nonzero()[0].tolist()
        ids.append(choose.choice(allowed))
        if ids[-1] in tokenizer.stop_ids:
            return tokenizer.decode(ids[:-1])
    raise AssertionError(f"no end within {most} tokens: {tokenizer.decode(ids)[:200]}")


def calls_of(form: ToolForm, text: str) -> Iterator[tuple[str, Any]]:
    """Names and arguments, read by splitting at markers; wrong in any detail, it raises."""
    before, _, block = text.partition(form.calls_begin)
    assert form.separator not in before
    assert block.endswith(form.calls_end)
    calls = block.removesuffix(form.calls_end).removesuffix(form.call_end).split(form.call_end + form.between)
    for call in calls:
        name, arguments = call.removeprefix(form.call_begin).split(form.separator)
        if form.style == "fenced":
            assert name == "function"
            name, arguments = arguments.removesuffix("\n```").split("\n```json\n")
        yield name, json.loads(arguments)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_written_under_a_schema_is_valid(seed: int) -> None:
    schema, tokenizer = random_schema(random.Random(seed)), Tokenizer(checkpoint_folder("tutor"))
    text = babble(Grammars(tokenizer, DIALECTS["fenced"]).json(JsonForm(schema, strict=True)), tokenizer, seed)
    jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("text", ["{}", '{"a": 1}', '{"a":[1,{"b":null}]}', '{\n  "a": "<b>"\n}'])
def test_an_object_as_people_write_it_is_taken(grammars: Grammars, tokenizer: Tokenizer, text: str) -> None:
    assert takes(grammars.json(ANY_OBJECT), tokenizer, text)


@pytest.mark.parametrize("text", ["", "[]", "1", '{"a": 1', '{"a": 1} ok', "<think></think>{}"])
def test_what_is_no_object_is_not_taken(grammars: Grammars, tokenizer: Tokenizer, text: str) -> None:
    assert not takes(grammars.json(ANY_OBJECT), tokenizer, text)


def test_the_constraint_begins_behind_the_reasoning(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.json(ANY_OBJECT, in_reasoning=True)
    assert takes(grammar, tokenizer, 'Hmm, {"a" or\nnot.</think>\n\n{"a": 1}')
    assert takes(grammar, tokenizer, "</think>{}")
    assert not takes(grammar, tokenizer, "{}")
    assert not takes(grammar, tokenizer, "Hmm.</think>Well: {}")


@pytest.mark.parametrize("choice", ["auto", "required", "weather"])
def test_calls_in_the_dialects_form_are_taken(
    grammars: Grammars, tokenizer: Tokenizer, dialect: Dialect, choice: str
) -> None:
    assert dialect.tools
    grammar = grammars.tool_calls(TOOLS, choice=choice)
    assert takes(grammar, tokenizer, dialect.tools.write_calls([("weather", '{"city": "Rom"}')]))
    assert not takes(grammar, tokenizer, dialect.tools.write_calls([("weather", '{"city": "Bonn"}')]))
    assert not takes(grammar, tokenizer, dialect.tools.write_calls([("whether", '{"city": "Rom"}')]))


@pytest.mark.parametrize(("parallel", "taken"), [(True, True), (False, False)])
def test_several_calls_are_taken_where_they_are_wanted(
    grammars: Grammars, tokenizer: Tokenizer, dialect: Dialect, parallel: bool, taken: bool
) -> None:
    assert dialect.tools
    text = dialect.tools.write_calls([("add", "[true]"), ("weather", '{"city": "Ulm"}')])
    assert takes(grammars.tool_calls(TOOLS, choice="required", parallel=parallel), tokenizer, text) is taken


def test_calls_come_to_an_end(grammars: Grammars, tokenizer: Tokenizer, dialect: Dialect) -> None:
    assert dialect.tools
    grammar = grammars.tool_calls(TOOLS, choice="required")
    most, more = (dialect.tools.write_calls([("add", "[true]")] * count) for count in (MOST_CALLS, MOST_CALLS + 1))
    assert takes(grammar, tokenizer, most)
    assert not takes(grammar, tokenizer, more)


def test_text_needs_no_call_unless_one_is_required(grammars: Grammars, tokenizer: Tokenizer, dialect: Dialect) -> None:
    assert dialect.tools
    call = dialect.tools.write_calls([("add", "[false, true]")])
    auto, required = (grammars.tool_calls(TOOLS, choice=choice) for choice in ("auto", "required"))
    assert [takes(auto, tokenizer, text) for text in ("", "It is 3 < 4.", "Wait:" + call)] == [True] * 3
    assert [takes(required, tokenizer, text) for text in ("", "It is 3 < 4.", "Wait:" + call)] == [False] * 3
    assert not takes(auto, tokenizer, dialect.tools.calls_begin)


@pytest.mark.parametrize("choice", ["required", "add"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_written_where_calls_are_required_is_calls(
    grammars: Grammars, tokenizer: Tokenizer, dialect: Dialect, choice: str, seed: int
) -> None:
    assert dialect.tools
    grammar = grammars.tool_calls(TOOLS[:1] if choice == "required" else TOOLS, choice=choice)
    for name, arguments in calls_of(dialect.tools, babble(grammar, tokenizer, seed)):
        jsonschema.validate(arguments, next(tool.parameters for tool in TOOLS if tool.name == name))


def test_beside_a_form_for_content_an_answer_is_calls_or_of_that_form(
    grammars: Grammars, tokenizer: Tokenizer, dialect: Dialect
) -> None:
    assert dialect.tools
    call = dialect.tools.write_calls([("add", "[true]")])
    auto, required = (
        grammars.tool_calls(TOOLS, choice=choice, content=JsonForm(CLOSED, strict=True))
        for choice in ("auto", "required")
    )
    texts = (call, '{"city": "Ulm"}', '{"city": "Bonn"}', "Ulm.", '{"city": "Ulm"}' + call)
    assert [takes(auto, tokenizer, text) for text in texts] == [True, True, False, False, False]
    assert [takes(required, tokenizer, text) for text in texts] == [True, False, False, False, False]


def test_a_mask_answers_for_drafts_and_then_for_others(grammars: Grammars, tokenizer: Tokenizer) -> None:
    mask, fresh = (grammars.json(ANY_OBJECT).mask() for _ in range(2))
    ids = tokenizer.encode('{"a": 1}')
    other = tokenizer.encode('{"b')
    questions: list[Sequence[int]] = [ids[:2], ids, other, ids[:1], [], ids]
    for question in questions:
        assert (mask(question) == Grammars(tokenizer, DIALECTS["fenced"]).json(ANY_OBJECT).mask()(question)).all()
    assert (fresh([]) == mask([])).all()


def test_a_token_that_was_not_allowed_lets_the_answer_end(grammars: Grammars, tokenizer: Tokenizer) -> None:
    mask = grammars.json(ANY_OBJECT).mask()
    assert not mask(tokenizer.encode("no")).any()
    assert mask([]).any()


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "not"),
        ({"type": "strng"}, "strng"),
        ({"type": "string", "format": "zip"}, "zip"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "#/$defs/nope"}, "nope"),
        ({"enum": []}, "empty"),
        (False, "schema"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_its_name(grammars: Grammars, schema: Any, named: str) -> None:
    attempts: list[Callable[[], Grammar]] = [
        lambda: grammars.json(JsonForm(schema, strict=True)),
        lambda: grammars.tool_calls([Tool("f", schema, strict=True)], choice="auto"),
    ]
    for attempt in attempts:
        with pytest.raises(GrammarError, match=named):
            attempt()


def test_without_strict_unknown_keywords_are_left_out(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = grammars.json(JsonForm({"type": "array", "uniqueItems": True}, strict=False))
    assert takes(grammar, tokenizer, "[1, 1]")


def test_properties_that_nobody_named_are_not_invented(grammars: Grammars, tokenizer: Tokenizer) -> None:
    inner = {"type": "object", "properties": {"b": {"type": "null"}}}
    grammar = grammars.json(JsonForm({"type": "object", "properties": {"a": inner}}, strict=True))
    assert takes(grammar, tokenizer, '{"a": {"b": null}}')
    assert not takes(grammar, tokenizer, '{"c": 1}')
    assert not takes(grammar, tokenizer, '{"a": {"c": null}}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"^c": {}}},
        {"allOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"c": {}}}]},
    ],
)
def test_properties_that_are_welcome_stay_so(grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any]) -> None:
    assert takes(grammars.json(JsonForm(schema, strict=True)), tokenizer, '{"c": 1}')


def test_a_property_may_be_called_like_a_keyword(grammars: Grammars, tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"properties": {"enum": [1]}, "enum": {"const": 2}}}
    assert takes(grammars.json(JsonForm(schema, strict=True)), tokenizer, '{"properties": 1, "enum": 2}')


def test_a_schema_cannot_give_the_library_orders(grammars: Grammars) -> None:
    with pytest.raises(GrammarError, match="uniqueItems"):
        grammars.json(JsonForm({"uniqueItems": True, "x-guidance": {"lenient": True}}, strict=True))


def test_a_tool_that_is_not_there_cannot_be_chosen(grammars: Grammars) -> None:
    with pytest.raises(GrammarError, match=r"'rain'.*weather, add"):
        grammars.tool_calls(TOOLS, choice="rain")


def test_a_model_without_a_form_for_calls_gets_no_tools(tokenizer: Tokenizer) -> None:
    with pytest.raises(GrammarError, match="no known form"):
        Grammars(tokenizer, Dialect("plain")).tool_calls(TOOLS, choice="auto")


class Unreadable(Tokenizer):
    """A tokenizer of a kind that the grammar library does not know."""

    def __init__(self) -> None:
        self.fast = FastTokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
        self.size, self.stop_ids, self.added_ids = 2, frozenset({1}), {}


def test_a_tokenizer_that_cannot_be_read_costs_only_the_forms(caplog: pytest.LogCaptureFixture) -> None:
    grammars = Grammars(Unreadable(), DIALECTS["bare"])
    grammars.prepare()
    assert "no form can be enforced" in caplog.text
    with pytest.raises(GrammarError, match="no form can be enforced"):
        grammars.json(ANY_OBJECT)
