"""Answers taken apart: the same parts whichever way the text comes, and no marker among them."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_runtime.text.dialect import BARE, FENCED, PLAIN, Dialect, ToolForm
from deepseek_runtime.text.parser import Content, OutputParser, Part, Reasoning, ToolArguments, ToolCall

V3 = Dialect("deepseek-v3", tools=FENCED)
R1 = Dialect("deepseek-r1", "<think>", "</think>", "<think>\n", "always", tools=FENCED)
V31 = Dialect("deepseek-v3.1", "<think>", "</think>", "<think>", "switch", "thinking", BARE)
FORMS = pytest.mark.parametrize("form", [FENCED, BARE], ids=["fenced", "bare"])


def parse(
    dialect: Dialect, text: str, cuts: list[int] | None = None, *, in_reasoning: bool = False, tools: bool = True
) -> list[Part]:
    """The parts of a text that comes in pieces; without cuts, in one."""
    parser = OutputParser(dialect, in_reasoning=in_reasoning, tools=tools)
    edges = sorted({0, len(text), *(cut for cut in cuts or () if cut < len(text))})
    parts = [part for a, b in pairwise(edges) for part in parser.push(text[a:b])]
    return parts + parser.finish()


def merged(parts: list[Part]) -> list[Part]:
    """Parts with neighbours of one kind put together."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, Reasoning) and isinstance(last, Reasoning):
            result[-1] = Reasoning(last.text + part.text)
        elif isinstance(part, Content) and isinstance(last, Content):
            result[-1] = Content(last.text + part.text)
        elif isinstance(part, ToolArguments) and isinstance(last, ToolArguments) and part.index == last.index:
            result[-1] = ToolArguments(part.index, last.text + part.text)
        else:
            result.append(part)
    return result


def every_cut(dialect: Dialect, text: str, **how: bool) -> list[Part]:
    """The parts, the same for one piece, for single characters, and for every cut in two."""
    whole = merged(parse(dialect, text, **how))
    for cuts in (list(range(len(text))), *([cut] for cut in range(len(text)))):
        assert merged(parse(dialect, text, cuts, **how)) == whole
    return whole


class TestReasoning:
    def test_it_ends_at_the_tag_that_nobody_sees(self) -> None:
        assert every_cut(V31, "abc</think>def", in_reasoning=True) == [Reasoning("abc"), Content("def")]

    def test_line_breaks_around_the_tags_are_of_the_wire_form(self) -> None:
        parts = every_cut(R1, "<think>\nabc\n\nd\n</think>\n\ndef\n")
        assert parts == [Reasoning("abc\n\nd"), Content("def\n")]

    def test_without_reasoning_all_is_content(self) -> None:
        assert every_cut(V31, "abc</think>def") == [Content("abc</think>def")]
        assert every_cut(V3, "<think>abc</think>", in_reasoning=True) == [Content("<think>abc</think>")]

    def test_an_answer_that_is_cut_before_the_tag_is_all_reasoning(self) -> None:
        assert every_cut(V31, "abc\n<", in_reasoning=True) == [Reasoning("abc\n<")]
        assert every_cut(V31, "abc\n</thi", in_reasoning=True) == [Reasoning("abc\n")]

    def test_a_second_opening_tag_is_not_shown(self) -> None:
        assert every_cut(R1, "\n<think>\na</think>b", in_reasoning=True) == [Reasoning("a"), Content("b")]

    def test_only_the_first_closing_tag_counts(self) -> None:
        assert every_cut(R1, "a</think>b</think>c", in_reasoning=True) == [Reasoning("a"), Content("b</think>c")]

    def test_a_call_within_reasoning_is_a_thought(self) -> None:
        thought = BARE.write_calls([("f", "{}")])
        assert every_cut(V31, f"{thought}</think>b", in_reasoning=True) == [Reasoning(thought), Content("b")]

    def test_it_is_shown_as_it_comes(self) -> None:
        parser = OutputParser(V31, in_reasoning=True, tools=False)
        assert [parser.push(text) for text in ("a", "b<", "c</", "think>", "d")] == [
            [Reasoning("a")],
            [Reasoning("b")],
            [Reasoning("<c")],
            [],
            [Content("d")],
        ]


class TestCalls:
    @FORMS
    def test_several_of_them_behind_content(self, form: ToolForm) -> None:
        text = "Let me see. " + form.write_calls([("weather", '{"city": "北京"}'), ("add", "{}")])
        assert every_cut(Dialect("any", tools=form), text) == [
            Content("Let me see. "),
            ToolCall(0, "weather"),
            ToolArguments(0, '{"city": "北京"}'),
            ToolCall(1, "add"),
            ToolArguments(1, "{}"),
        ]

    def test_behind_reasoning(self) -> None:
        text = "why</think>" + BARE.write_calls([("f", "{}")])
        parts = every_cut(V31, text, in_reasoning=True)
        assert parts == [Reasoning("why"), ToolCall(0, "f"), ToolArguments(0, "{}")]

    @FORMS
    def test_arguments_come_while_they_are_written(self, form: ToolForm) -> None:
        parser = OutputParser(Dialect("any", tools=form), in_reasoning=False, tools=True)
        before, _ = form.around("f")
        assert parser.push(form.calls_begin + form.call_begin + before + '{"') == [
            ToolCall(0, "f"),
            ToolArguments(0, '{"'),
        ]
        assert parser.push('a": ') + parser.push("1") + parser.push("}") == [
            ToolArguments(0, 'a":' if form is FENCED else 'a": '),
            ToolArguments(0, " 1" if form is FENCED else "1"),
            ToolArguments(0, "}"),
        ]

    @FORMS
    @pytest.mark.parametrize("unfinished", ['{"a": "x', '{"a": "``', '{"a": 1,\n  ', '{"a": "<'])
    def test_arguments_that_end_too_early_are_passed_on_as_they_are(self, form: ToolForm, unfinished: str) -> None:
        before, _ = form.around("f")
        text = form.calls_begin + form.call_begin + before + unfinished
        assert every_cut(Dialect("any", tools=form), text) == [ToolCall(0, "f"), ToolArguments(0, unfinished)]

    @pytest.mark.parametrize("end", ["\n```", "\n``", "\n```\n", "\n```<｜tool▁ca", "<｜tool▁ca"])
    def test_what_closes_a_call_is_no_argument_even_if_it_is_incomplete(self, end: str) -> None:
        text = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}" + end
        assert every_cut(V3, text) == [ToolCall(0, "f"), ToolArguments(0, "{}")]

    @pytest.mark.parametrize(
        "call",
        [
            "function<｜tool▁sep｜>f\n```\n{}\n```",
            "function<｜tool▁sep｜> f \n\n```json{}```",
            "function<｜tool▁sep｜>f\n{}",
            "<｜tool▁sep｜>f\n```json\n{}",
        ],
    )
    def test_a_sloppy_fence_is_understood(self, call: str) -> None:
        text = f"<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>"
        assert every_cut(V3, text) == [ToolCall(0, "f"), ToolArguments(0, "{}")]

    @pytest.mark.parametrize(
        "text", ["<｜tool▁call▁begin｜>f", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>f<｜tool"]
    )
    def test_a_name_that_is_incomplete_is_no_call(self, text: str) -> None:
        assert every_cut(V31, text) == []

    def test_what_is_no_call_is_content_without_its_markers(self) -> None:
        text = 'a<｜tool▁calls▁begin｜>{"name": "f"}<｜tool▁calls▁end｜>\n<｜tool▁call▁begin｜>b<｜tool▁call▁end｜>'
        assert every_cut(V31, text) == [Content('a{"name": "f"}b')]

    def test_without_tools_markers_are_content(self) -> None:
        text = BARE.write_calls([("f", "{}")])
        assert every_cut(V31, text, tools=False) == [Content(text)]
        assert every_cut(PLAIN, text) == [Content(text)]


PIECES = st.one_of(
    st.sampled_from(sorted(FENCED.markers)),
    st.sampled_from(
        ["<think>", "</think>", "function", "f", "\n", "```json\n", "\n```", "``", " ", "{", '{"a": 1}', "<"]
    ),
    st.sampled_from(sorted(FENCED.markers)).flatmap(
        lambda marker: st.integers(1, len(marker)).map(lambda n: marker[:n])
    ),
    st.text(max_size=4),
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)
OBJECTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
    ),
    max_size=3,
)


class TestAnyText:
    @given(
        dialect=st.sampled_from([V3, R1, V31, PLAIN]),
        text=TEXTS,
        cuts=st.lists(st.integers(0, 80)),
        in_reasoning=st.booleans(),
        tools=st.booleans(),
    )
    def test_the_cut_into_pieces_does_not_matter(
        self, dialect: Dialect, text: str, cuts: list[int], in_reasoning: bool, tools: bool
    ) -> None:
        whole = parse(dialect, text, in_reasoning=in_reasoning, tools=tools)
        split = parse(dialect, text, cuts, in_reasoning=in_reasoning, tools=tools)
        assert merged(split) == merged(whole)

    @given(dialect=st.sampled_from([V3, R1, V31]), text=TEXTS, in_reasoning=st.booleans())
    def test_no_marker_is_shown(self, dialect: Dialect, text: str, in_reasoning: bool) -> None:
        for part in parse(dialect, text, in_reasoning=in_reasoning):
            if isinstance(part, Reasoning):
                assert dialect.think_end not in part.text
            else:
                shown = part.name if isinstance(part, ToolCall) else part.text
                assert not any(marker in shown for marker in FENCED.markers)

    @given(text=TEXTS)
    def test_without_reasoning_and_tools_nothing_is_changed(self, text: str) -> None:
        assert "".join(part.text for part in parse(V3, text, tools=False) if isinstance(part, Content)) == text

    @given(dialect=st.sampled_from([V3, R1, V31]), text=TEXTS, in_reasoning=st.booleans())
    def test_calls_are_numbered_and_arguments_belong_to_the_last(
        self, dialect: Dialect, text: str, in_reasoning: bool
    ) -> None:
        calls = 0
        for part in parse(dialect, text, in_reasoning=in_reasoning):
            calls += isinstance(part, ToolCall)
            if isinstance(part, ToolCall | ToolArguments):
                assert part.index == calls - 1

    @given(
        form=st.sampled_from([FENCED, BARE]),
        calls=st.lists(
            st.tuples(st.from_regex(r"[a-zA-Z0-9_-]{1,8}", fullmatch=True), OBJECTS), min_size=1, max_size=3
        ),
        indent=st.sampled_from([None, 2]),
        cuts=st.lists(st.integers(0, 200), max_size=8),
    )
    def test_calls_are_read_as_they_were_written(
        self, form: ToolForm, calls: list[tuple[str, dict[str, Any]]], indent: int | None, cuts: list[int]
    ) -> None:
        written = [(name, json.dumps(value, indent=indent, ensure_ascii=False)) for name, value in calls]
        parts = merged(parse(Dialect("any", tools=form), form.write_calls(written), cuts))
        expected = [(ToolCall(n, name), ToolArguments(n, text)) for n, (name, text) in enumerate(written)]
        assert parts == [part for pair in expected for part in pair]
