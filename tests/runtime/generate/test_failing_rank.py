"""What one rank alone cannot do is said once and in its own words, though torchrun ends the others right away."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deepseek_runtime.offline.launch import PATIENCE_SECONDS
from deepseek_runtime.settings import checkpoint_folder

from .conftest import ALONE, HELP_LINE, TORCHRUN, run, started, two_ranks

PROGRAM = str(Path(__file__).with_name("odd_rank_program.py"))


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The sentences among what torchrun has to say."""
    return re.findall(r"^error: (.*)$", done.stderr, re.MULTILINE)


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """The tutor without its weights."""
    folder = shutil.copytree(checkpoint_folder("tutor"), tmp_path / "incomplete")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return folder


def test_a_file_that_is_missing_on_another_node_is_named_by_rank_0(incomplete: Path) -> None:
    tutor = str(checkpoint_folder("tutor"))
    done = run([*TORCHRUN, PROGRAM, "deepseek_runtime.generate", tutor, str(incomplete), "hi"])
    (sentence,) = errors_of(done)
    assert sentence.startswith("rank 1: ")
    assert str(incomplete) in sentence
    assert done.stdout == ""


def test_a_server_whose_other_node_lacks_a_file_says_so_on_rank_0(incomplete: Path) -> None:
    tutor, ports = str(checkpoint_folder("tutor")), ["--host", "127.0.0.1", "--port", "0", "--health-port", "0"]
    done = run([*TORCHRUN, PROGRAM, "deepseek_runtime.serve", tutor, str(incomplete), *ports])
    (sentence,) = re.findall(r" ERROR rank 0: (.*)", done.stderr)
    assert sentence.startswith("rank 1: ")
    assert str(incomplete) in sentence
    assert "is lost" not in done.stderr


def test_arguments_that_every_rank_refuses_are_refused_once() -> None:
    done = run([*TORCHRUN, "-m", "deepseek_runtime.generate", "--max-new-tokens", "-4", "hi"])
    assert errors_of(done) == ["argument --max-new-tokens/--max-tokens: must be a whole number from 1, not -4"]


def test_a_folder_that_every_rank_refuses_is_refused_in_one_sentence(incomplete: Path) -> None:
    done = run([*ALONE, "--nproc", "2", "--model", str(incomplete), "hi"])
    assert done.returncode == 2
    (sentence,) = errors_of(done)
    assert str(incomplete) in sentence
    assert "is lost" not in done.stderr


def test_a_rank_that_nobody_speaks_for_speaks_itself_after_a_while() -> None:
    place = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    with started([*ALONE, "--temperature", "9", "hi"], **place) as process:
        assert process.communicate(timeout=PATIENCE_SECONDS + 60)[1] == (
            "error: rank 3: argument --temperature: must be 0 to 2, not 9\n"
        )
        assert process.returncode == 2


def test_a_frozen_rank_is_named_within_a_limit_shorter_than_silence() -> None:
    with two_ranks("--stall-timeout", "3") as ranks:
        assert ranks[0].stdout is not None
        assert ranks[0].stdout.readline() == HELP_LINE
        ranks[1].send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        assert ranks[0].stderr is not None
        sentence = next(line for line in ranks[0].stderr if line.startswith("error: "))
        assert time.monotonic() - frozen_at < 9
        assert sentence.startswith("error: rank 1 is lost: it stalls: rank")
