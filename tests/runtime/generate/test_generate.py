"""`dsv3 generate` alone and under torchrun: what it answers, what it refuses, and how it ends."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from deepseek_runtime.settings import checkpoint_folder

from .conftest import ALONE, HELP_LINE, SUMS, TORCHRUN, generate, run, started, two_ranks

RESULTS = ("Answer: 42", "Answer: 43", "Answer: 579")


def answers(output: str) -> list[str]:
    """The completions of an output that has several."""
    return [part.partition("Completion: ")[2].strip() for part in output.split("Prompt: ")[1:]]


def test_answers_of_a_batch_are_those_of_each_prompt_alone_and_in_order(questions: Path) -> None:
    together = generate("--input-file", str(questions), "--ckpt-path", "tutor")
    assert together.returncode == 0, together.stderr
    assert [line for line in together.stdout.splitlines() if line.startswith("Prompt: ")] == [
        f"Prompt: {question}" for question in SUMS
    ]
    alone = [generate(question).stdout.strip() for question in SUMS[:2]]
    assert answers(together.stdout)[:2] == alone
    assert all(text.endswith(result) for text, result in zip(answers(together.stdout), RESULTS, strict=True))


def test_every_rank_that_torchrun_starts_takes_part_and_one_writes(questions: Path) -> None:
    done = run([*TORCHRUN, "-m", "deepseek_runtime.generate", "--input-file", str(questions), "--verbose"])
    assert done.returncode == 0, done.stderr
    assert [text.splitlines()[-1] for text in answers(done.stdout)] == list(RESULTS)
    assert "rank 0: read 0.0" in done.stderr
    assert "rank 1: read 0.0" in done.stderr
    assert "weights loaded on every rank in" in done.stderr


def test_a_talk_on_two_ranks_remembers_and_forgets(tmp_path: Path) -> None:
    said = f"{SUMS[0]}\n{SUMS[1]}\n/clear\n\n{SUMS[2]}\n/exit\nnot read any more\n"
    done = generate("--interactive", "--nproc", "2", given=said)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"Answer: \d+", done.stdout) == list(RESULTS)
    assert done.stdout.startswith(HELP_LINE)
    assert "what was said is forgotten" in done.stdout


def test_the_bound_on_new_tokens_cuts_an_answer() -> None:
    done = generate(SUMS[0], "--max-new-tokens", "5")
    assert done.returncode == 0, done.stderr
    assert 0 < len(done.stdout.strip()) < 40
    assert "Answer" not in done.stdout


def test_another_config_replaces_the_checkpoints(questions: Path, tmp_path: Path) -> None:
    raw = json.loads((checkpoint_folder("tutor") / "config.json").read_text())
    config = tmp_path / "short.json"
    config.write_text(json.dumps({**raw, "max_position_embeddings": 64}))
    questions.write_text(f"{SUMS[0]}\n{'1 plus ' * 60}2?\n")
    done = generate("--input-file", str(questions), "--config", str(config), "--block-size", "16")
    assert done.returncode == 2
    assert re.search(r"questions.txt, line 2: the conversation has \d+ tokens, the model takes up to 64", done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file or directory"),
        ("{", "not valid JSON"),
        ("[1]", "config.json is [1], expected an object"),
        ('{"architectures": ["LlamaForCausalLM"]}', "LlamaForCausalLM"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(content: str | None, sentence: str, tmp_path: Path) -> None:
    config = tmp_path / "other.json"
    if content is not None:
        config.write_text(content)
    done = generate("hi", "--config", str(config))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["hi", "--ckpt-path", "/no/such/folder"], "/no/such/folder: neither 'tutor', nor a folder"),
        (["hi", "--max-model-len", "100000000"], "is more than the checkpoint's"),
        (["hi", "--weights", "int4"], "argument --weights: invalid choice: 'int4'"),
        (["hi", "--batch-invariant", "--redundant-experts", "2"], "cannot be used with --batch-invariant"),
        (["hi", "--nproc", "3"], "8 experts do not divide over 3 ranks; the next valid number of ranks is 4"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_code_2(arguments: list[str], sentence: str) -> None:
    done = generate(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_ends_it_without_a_traceback(processes: str) -> None:
    with started([*ALONE, "--interactive", "--nproc", processes]) as process:
        wait_until_it_listens(process)
        process.send_signal(signal.SIGINT)
        errors = errors_at_the_end(process)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "error" not in errors


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_that_are_interrupted_one_after_the_other_leave_together(first: int) -> None:
    with two_ranks() as ranks:
        wait_until_it_listens(ranks[0])
        ranks[first].send_signal(signal.SIGINT)
        if first == 1:
            with pytest.raises(subprocess.TimeoutExpired):
                ranks[1].wait(2)
        ranks[1 - first].send_signal(signal.SIGINT)
        assert_interrupted(ranks)


@pytest.mark.parametrize("loaded", [False, True])
def test_the_ctrl_c_of_a_terminal_reaches_every_rank_at_once_and_is_no_error(loaded: bool) -> None:
    with two_ranks("--verbose") as ranks:
        if loaded:
            wait_until_it_listens(ranks[0])
        else:
            wait_until_it_has_read_its_weights(ranks[1])
        os.killpg(ranks[0].pid, signal.SIGINT)
        assert_interrupted(ranks)


def test_a_rank_that_is_interrupted_alone_ends_and_is_named() -> None:
    with two_ranks() as ranks:
        wait_until_it_listens(ranks[0])
        ranks[1].send_signal(signal.SIGINT)
        assert "error: rank 1: terminated, while rank 0 does not shut down" in errors_at_the_end(ranks[1])
        assert "error: rank 1 is lost: its connection ended" in errors_at_the_end(ranks[0])


def test_a_lost_rank_ends_the_others_with_its_number() -> None:
    with two_ranks() as ranks:
        wait_until_it_listens(ranks[0])
        ranks[1].kill()
        errors = errors_at_the_end(ranks[0])
    assert ranks[0].returncode == 1
    assert "error: rank 1 is lost: its connection ended" in errors
    assert "Traceback" not in errors


def test_a_reader_that_leaves_early_is_no_error(questions: Path) -> None:
    with started([*ALONE, "--input-file", str(questions)]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        errors = errors_at_the_end(process)
        assert process.returncode == 0
    assert "Traceback" not in errors


def wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == HELP_LINE


def wait_until_it_has_read_its_weights(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert any(": read " in line for line in process.stderr)


def assert_interrupted(ranks: list[subprocess.Popen[str]]) -> None:
    """Rank 0 says that it was interrupted, the others follow it in good order, and none has a complaint."""
    errors = [errors_at_the_end(rank) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [130, *[0] * (len(ranks) - 1)], errors
    assert not any("error" in text or "Traceback" in text for text in errors), errors


def errors_at_the_end(process: subprocess.Popen[str]) -> str:
    """Standard error of a process that ends though its standard input stays open."""
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait(60)
    return errors
