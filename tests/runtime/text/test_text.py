"""Tokenizer, detokeniser, stop strings and chat template on DeepSeek's own special tokens."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from deepseek_runtime.text.detokenizer import Detokenizer
from deepseek_runtime.text.stops import StopMatcher
from deepseek_runtime.text.template import ChatTemplate, TemplateRefusal
from deepseek_runtime.text.tokenizer import CheckpointError, Tokenizer
from fake_model import ASSISTANT, BOS, EOS, USER, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(folder, tokenizer)


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


class TestTokenizer:
    def test_special_ids_are_read_by_name(self, tokenizer: Tokenizer) -> None:
        assert (tokenizer.bos_id, tokenizer.stop_ids, tokenizer.size) == (0, frozenset({1}), 260)

    def test_ends_of_turns_come_from_all_three_files(self, tmp_path: Path) -> None:
        write_tokenizer(tmp_path)
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
        (tmp_path / "config.json").write_text('{"eos_token_id": 8}')
        assert Tokenizer(tmp_path).stop_ids == {1, 8, 9}

    def test_encoding_adds_no_special_token_but_reads_those_written_out(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode(f"{BOS}a{USER}")
        assert (ids[0], ids[2], len(ids)) == (0, 258, 3)

    def test_an_added_token_stands_for_its_own_letters(self, tmp_path: Path) -> None:
        fast = FastTokenizer.from_file(str(write_tokenizer(tmp_path) / "tokenizer.json"))
        fast.add_tokens(["é"])
        fast.save(str(tmp_path / "tokenizer.json"))
        tokenizer = Tokenizer(tmp_path)
        assert tokenizer.token_bytes(tokenizer.added_ids["é"]) == "é".encode()

    def test_the_bytes_of_a_token_are_real_even_inside_a_character(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("é\n ")
        assert [tokenizer.token_bytes(id_) for id_ in ids] == [b"\xc3", b"\xa9", b"\n", b" "]
        assert tokenizer.token_bytes(0) == BOS.encode()

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("tokenizer.json", None, "no such file"),
            ("tokenizer.json", "{}", "tokenizer.json"),
            ("tokenizer_config.json", "{", "not valid JSON"),
            ("tokenizer_config.json", '{"bos_token": "<s>"}', "has no token '<s>'"),
        ],
    )
    def test_a_broken_file_is_named(self, name: str, content: str | None, sentence: str, tmp_path: Path) -> None:
        write_tokenizer(tmp_path)
        (tmp_path / name).write_text(content) if content else (tmp_path / name).unlink()
        with pytest.raises(CheckpointError, match=sentence):
            Tokenizer(tmp_path)


class TestDetokenizer:
    @settings(max_examples=60, deadline=None)
    @given(text=st.text(max_size=40))
    def test_the_pieces_are_the_text_and_never_half_a_character(self, tokenizer: Tokenizer, text: str) -> None:
        stream = Detokenizer(tokenizer, keep=tokenizer.special_ids.keys())
        pieces = [stream.push(id_) for id_ in tokenizer.encode(text)]
        assert "".join(pieces) == text
        assert "".join(pieces).count("�") == text.count("�")

    @given(tokens=st.lists(st.integers(0, 300), max_size=30))
    def test_any_tokens_make_text(self, tokenizer: Tokenizer, tokens: list[int]) -> None:
        stream = Detokenizer(tokenizer)
        shown = "".join(map(stream.push, tokens))
        real = b"".join(tokenizer.token_bytes(id_) for id_ in tokens if id_ not in tokenizer.hidden_ids)
        assert real.decode(errors="replace").startswith(shown)
        assert len(shown) >= len(real.decode(errors="ignore"))

    def test_special_tokens_are_not_shown_but_those_that_a_parser_reads(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode(f"a{EOS}b{USER}")
        assert "".join(map(Detokenizer(tokenizer).push, ids)) == "ab"
        assert "".join(map(Detokenizer(tokenizer, keep={USER, "no token"}).push, ids)) == f"ab{USER}"

    def test_a_character_that_never_ends_is_held_back(self, tokenizer: Tokenizer) -> None:
        stream = Detokenizer(tokenizer)
        assert "".join(map(stream.push, tokenizer.encode("a🙂")[:-1])) == "a"

    def test_bytes_that_are_no_character_hold_nothing_back(self, tokenizer: Tokenizer) -> None:
        stream = Detokenizer(tokenizer)
        half = tokenizer.encode("é")[0]
        assert [stream.push(id_) for id_ in (half, half, *tokenizer.encode("b"))] == ["", "�", "�b"]

    def test_words_that_bring_their_space_keep_it(self, tmp_path: Path) -> None:
        fast = FastTokenizer(models.WordLevel({"▁two": 0, "▁words": 1, "!": 2}, unk_token="!"))
        fast.decoder = decoders.Metaspace()
        fast.save(str(tmp_path / "tokenizer.json"))
        assert [*map(Detokenizer(Tokenizer(tmp_path)).push, [0, 1, 2])] == ["two", " words", "!"]


class TestStops:
    def test_what_may_begin_a_stop_string_is_held_back_and_shown_once(self) -> None:
        matcher = StopMatcher(["END"])
        assert [matcher.push(piece) for piece in ("a", "E", "N", "x", "EN")] == ["a", "", "", "ENx", ""]
        assert matcher.flush() == "EN"
        assert matcher.matched is None

    @pytest.mark.parametrize(("include", "shown"), [(False, "ab"), (True, "abEND")])
    def test_text_ends_at_the_stop_string(self, include: bool, shown: str) -> None:
        matcher = StopMatcher(["END", "zzz"], include=include)
        assert "".join(map(matcher.push, ["abE", "NDc", "d"])) == shown
        assert matcher.matched == "END"

    def test_an_empty_stop_string_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must not be empty"):
            StopMatcher([""])

    @given(
        text=st.text("ab.", max_size=30),
        stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
        cuts=st.lists(st.integers(0, 30)),
    )
    def test_the_cut_into_pieces_does_not_matter(self, text: str, stops: list[str], cuts: list[int]) -> None:
        whole, split = StopMatcher(stops), StopMatcher(stops)
        edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        pieces = [text[a:b] for a, b in pairwise(edges)]
        expected = whole.push(text)
        shown = "".join(map(split.push, pieces))
        if whole.matched is None and split.matched is None:
            assert shown + split.flush() == expected + whole.flush() == text
        else:
            assert whole.matched is not None
            assert split.matched is not None
            assert all(stop not in shown for stop in stops)


class TestTemplate:
    def test_one_turn_begins_with_the_only_bos(self, template: ChatTemplate) -> None:
        ids = template.encode([user("hi")]).ids
        assert (ids[0], ids.count(0), ids[-1]) == (0, 1, 259)

    def test_content_is_normalised(self, template: ChatTemplate) -> None:
        parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
        assert template.render([user(parts)]) == template.render([user("hi")])
        null = [user("hi"), {"role": "assistant", "content": None}, user("you")]
        assert f"{ASSISTANT}{EOS}" in template.render(null)

    def test_developer_is_the_new_name_of_system(self, template: ChatTemplate) -> None:
        assert template.render([{"role": "developer", "content": "Be brief."}]) == f"{BOS}Be brief.{ASSISTANT}"

    @pytest.mark.parametrize("begun", ["The answer", "The answer "])
    def test_a_begun_turn_is_continued_right_behind_its_text(self, begun: str, template: ChatTemplate) -> None:
        messages = [user("hi"), {"role": "assistant", "content": begun}]
        assert template.render(messages, proceed=True) == f"{BOS}{USER}hi{ASSISTANT}{begun}"

    def test_a_refusal_of_the_template_reaches_the_client(self, template: ChatTemplate) -> None:
        with pytest.raises(TemplateRefusal, match="no role guest here"):
            template.encode([{"role": "guest", "content": "4"}])

    @pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
    def test_a_template_cannot_leave_its_sandbox(self, attack: str, tmp_path: Path) -> None:
        write_tokenizer(tmp_path)
        (tmp_path / "chat_template.jinja").write_text(attack)
        with pytest.raises(TemplateRefusal, match="cannot render"):
            ChatTemplate(tmp_path, Tokenizer(tmp_path)).encode([user("hi")])

    @pytest.mark.parametrize(
        ("config", "sentence"), [({}, "neither chat_template"), ({"chat_template": "{% if %}"}, "cannot be parsed")]
    )
    def test_a_missing_or_broken_template_is_named(self, config: object, sentence: str, tmp_path: Path) -> None:
        write_tokenizer(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=sentence):
            ChatTemplate(tmp_path, Tokenizer(tmp_path))
