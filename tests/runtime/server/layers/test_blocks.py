"""Blocks are the same however the parts of an answer are cut, and their changes tell all of it in order."""

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deepseek_runtime.server.layers.blocks import Blocks, Change, Closed, Grown, Opened
from deepseek_runtime.text.parser import Content, Part, Reasoning, ToolArguments, ToolCall

TEXTS = st.text(max_size=5)
PARTS = st.lists(
    st.builds(Reasoning, TEXTS)
    | st.builds(Content, TEXTS)
    | st.tuples(st.sampled_from("ab"), TEXTS).map(lambda call: (ToolCall(0, call[0]), ToolArguments(0, call[1]))),
    max_size=8,
).map(lambda parts: [part for group in parts for part in (group if isinstance(group, tuple) else (group,))])


def split(part: Part) -> list[Part]:
    """A part letter by letter."""
    match part:
        case Reasoning(text):
            return [Reasoning(letter) for letter in text]
        case Content(text):
            return [Content(letter) for letter in text]
        case ToolArguments(index, text):
            return [ToolArguments(index, letter) for letter in text]
        case _:
            return [part]


def shape(blocks: Blocks) -> list[tuple[Any, ...]]:
    return [(block.index, block.kind, block.name, block.text, block.cut) for block in blocks.all]


def told(changes: Iterable[Change]) -> list[tuple[Any, ...]]:
    """What a reader of the changes knows, who checks that one block follows the other."""
    seen: list[list[Any]] = []
    is_open = False
    for change in changes:
        match change:
            case Opened(block):
                assert not is_open
                is_open = True
                seen.append([block.index, block.kind, block.name, "", block.cut])
            case Grown(block, text):
                assert is_open
                assert block.index == len(seen) - 1
                assert text
                seen[-1][3] += text
            case Closed(block):
                assert is_open
                assert block.index == len(seen) - 1
                is_open = False
                seen[-1][4] = block.cut
    assert not is_open
    return [tuple(block) for block in seen]


@given(PARTS, st.booleans())
def test_the_cut_of_the_parts_does_not_matter(parts: list[Part], cut: bool) -> None:
    at_once, bit_by_bit = Blocks(), Blocks()
    changes = [*at_once.take(parts), *at_once.finish(cut=cut)]
    bits = [change for part in parts for bit in split(part) for change in bit_by_bit.take([bit])]
    bits += bit_by_bit.finish(cut=cut)
    assert shape(at_once) == shape(bit_by_bit) == told(changes) == told(bits)
    assert [block.cut for block in at_once.all][:-1] == [False] * (len(at_once.all) - 1)
    assert at_once.all[-1].cut == cut


def test_neighbouring_texts_come_as_one_change() -> None:
    changes = Blocks().take([Content("a"), Content("b"), Reasoning("c"), Content("d")])
    assert [change.text for change in changes if isinstance(change, Grown)] == ["ab", "c", "d"]


def test_an_answer_of_nothing_is_one_empty_text() -> None:
    blocks = Blocks()
    assert told([*blocks.take([Content("")]), *blocks.finish(cut=False)]) == [(0, "text", "", "", False)]
