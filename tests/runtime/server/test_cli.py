"""The `dsv3` command: what it prints and how it fails, with the shipped model and a mirror."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_runtime.settings import checkpoint_folder
from hub_mirror import mirror

COMMAND = [sys.executable, "-m", "deepseek_runtime.cli"]


def dsv3(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=given,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_shipped_model_answers_and_remembers() -> None:
    result = dsv3("generate", "What is 12 plus 30?")
    assert result.returncode == 0, result.stderr
    assert "Answer: 42" in result.stdout
    result = dsv3("generate", "--interactive", given="What is 12 plus 30?\nWhat is 50 minus 7?\n/exit\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Answer:") == 2


def test_generate_has_its_own_help() -> None:
    assert "--ckpt-path" in dsv3("generate", "--help").stdout


def test_a_plan_gives_the_arithmetic_and_the_nearest_layout_that_fits() -> None:
    result = dsv3("plan", "deepseek-ai/DeepSeek-V3", "--accelerator", "H100", "--per-node", "8")
    assert "does not fit" in result.stdout
    assert "Nearest: 2 nodes × 8" in result.stdout


def test_a_checkpoint_is_downloaded_into_the_cache_and_verified(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "org" / "tutor"
    repository.mkdir(parents=True)
    for file in checkpoint_folder("tutor").iterdir():
        (repository / file.name).write_bytes(file.read_bytes())
    with mirror(tmp_path / "hub") as endpoint:
        result = dsv3("download", "org/tutor", XDG_CACHE_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert result.returncode == 0, result.stderr
    assert "commit" in result.stdout
    assert (tmp_path / "dsv3" / "org--tutor" / ".verified.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "hi", "--model", "nothing"], "neither 'tutor', nor a folder, nor a hub name"),
        (["plan", "--accelerator", "Abacus"], "accelerator 'Abacus' is not known"),
        (["plan", "nothing"], "neither a known hub name nor a folder"),
        (["download", "nothing"], "only hf://org/name"),
        (["serve", "--nproc", "0"], "Invalid value"),
        (["serve", "tutor", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_code_2(arguments: list[str], sentence: str) -> None:
    result = dsv3(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version_is_printed() -> None:
    assert dsv3("--version").stdout.startswith("dsv3 ")
