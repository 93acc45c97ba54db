"""`dsv3 chat`, as people use it: lines in, answers out."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_question_is_answered_and_the_program_leaves(dsv3: Command) -> None:
    result = dsv3("chat", "What is 12 plus 30?", "--temperature", "0")
    assert result.returncode == 0, result.stderr
    assert "Answer: 42" in result.stdout


def test_the_conversation_goes_on_until_the_end_of_the_input(dsv3: Command) -> None:
    result = dsv3("chat", "--temperature", "0", given="What is 12 plus 30?\n\nWhat is 50 minus 7?\n")
    assert "Answer: 42" in result.stdout
    assert "Answer: 43" in result.stdout
    assert result.returncode == 0


def test_what_was_said_is_saved_and_loaded_again(dsv3: Command, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    given = (
        f"/system Be kind.\nWhat is 12 plus 30?\nWhat is 1 plus 1?\n/undo\n/save {file}\n/new\n/load {file}\n/retry\n"
    )
    result = dsv3("chat", "--temperature", "0", given=given)
    saved = json.loads(file.read_text())
    assert saved["system"] == "Be kind."
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert result.stdout.count("Answer: 42") == 2


def test_a_message_of_several_lines_is_one_message(dsv3: Command, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    dsv3("chat", "--max-tokens", "4", given=f'"""What is\n12 plus 30?"""\n/save {file}\n')
    assert json.loads(file.read_text())["messages"][0]["content"] == "What is\n12 plus 30?"


def test_options_are_the_endpoints_own_until_they_are_set(dsv3: Command) -> None:
    given = "/set\n/set max_tokens 2\n/set temperature 0\n/set\n/set temperature\n/set\n/set colour 1\n/set seed x\n"
    lines = dsv3("chat", given=given).stdout.splitlines()
    assert lines[:3] == [
        "everything as the endpoint has it",
        '{"max_tokens": 2, "temperature": 0.0}',
        '{"max_tokens": 2}',
    ]
    assert "colour cannot be set" in lines[3]
    assert "invalid literal" in lines[4]


def test_wrong_commands_are_told_and_harmless(dsv3: Command, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.json"
    given = f"/sing\n/load {nothing}\n/retry\n/model other\n/thinking maybe\n/model\n/help\nWhat is 12 plus 30?\n"
    result = dsv3("chat", "--temperature", "0", given=given)
    for words in ("no command /sing", "nothing.json", "no question to ask", "other is not served", "* test", "/undo"):
        assert words in result.stdout
    assert "Answer: 42" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_the_servers_refusal_is_shown_and_the_question_forgotten(dsv3: Command) -> None:
    result = dsv3("chat", given="/set top_p 7\nWhat is 12 plus 30?\n/undo\n")
    assert "400: top_p" in result.stdout
    assert "nothing to take back" in result.stdout


def test_without_a_server_the_sentence_says_how_to_start_one(dsv3: Command) -> None:
    result = dsv3("chat", "--url", "http://127.0.0.1:9/v1", "hello")
    assert result.returncode == 2
    assert "http://127.0.0.1:9/v1 does not answer" in result.stderr
    assert "dsv3 serve" in result.stderr
    assert "Traceback" not in result.stderr
