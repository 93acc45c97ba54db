"""A command line is understood, or refused in a sentence, before anything is started."""

from pathlib import Path

import pytest

from deepseek_runtime.offline.order import Question, parse
from deepseek_runtime.settings import StartupError


def test_the_names_of_deepseeks_own_script_are_understood(tmp_path: Path) -> None:
    order = parse(
        ["--ckpt-path", "/w", "--config", "c.json", "--interactive", "--max-new-tokens", "7", "--temperature", "0.2"]
    )
    assert (order.model, order.config, order.questions) == ("/w", Path("c.json"), None)
    assert (order.max_tokens, order.temperature) == (7, 0.2)


def test_a_single_prompt_has_no_title() -> None:
    order = parse(["What is 1 + 1?", "-m", "org/name", "--max-tokens", "3"])
    assert order.questions == (Question("What is 1 + 1?", ""),)
    assert (order.model, order.max_tokens, order.temperature, order.processes) == ("org/name", 3, 0.0, 1)


def test_lines_of_a_file_keep_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "q.txt"
    file.write_text("\n  first \n\nsecond", encoding="utf-8")
    order = parse(["--input-file", str(file)])
    assert order.questions == (Question("first", f"{file}, line 2"), Question("second", f"{file}, line 4"))


def test_flags_of_the_engine_are_passed_on() -> None:
    order = parse(["--dtype", "bfloat16", "hi", "--kv-tokens=64", "--no-prefix-caching"])
    assert order.questions == (Question("hi", ""),)
    assert sorted(order.engine) == ["--dtype=bfloat16", "--kv-tokens=64", "--no-prefix-caching"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "exactly one of: a prompt, --input-file FILE, --interactive"),
        (["hi", "--interactive"], "exactly one of"),
        (["hi", "--input-file", "x"], "exactly one of"),
        (["hi", "--port", "80"], "unrecognized arguments: --port 80"),
        (["hi", "there"], "unrecognized arguments: there"),
        (["  "], "the prompt is empty"),
        (["hi", "--temperature", "3"], "--temperature: must be 0 to 2, not 3"),
        (["hi", "--temperature", "nan"], "--temperature: must be 0 to 2, not nan"),
        (["hi", "--temperature", "warm"], "--temperature: must be 0 to 2, not warm"),
        (["hi", "--max-new-tokens", "0"], "must be a whole number from 1, not 0"),
        (["hi", "--nproc", "-1"], "must be a whole number from 1, not -1"),
        (["--input-file", "/no/such/file"], "--input-file /no/such/file: No such file"),
        (["--input-file", "/"], "--input-file /: Is a directory"),
        (["--input-file", "/dev/null"], "--input-file /dev/null: holds no prompt; write one per line"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence):
        parse(arguments)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "q.bin"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartupError, match=r"q\.bin: not a text in UTF-8"):
        parse(["--input-file", str(file)])
