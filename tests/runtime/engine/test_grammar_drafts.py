"""Real grammars over the real model: what is written is valid, and drafts and ranks change nothing of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .grammar_program import DRAFTS, QUESTIONS, SCHEMAS, TEMPERATURES

PROGRAM = Path(__file__).with_name("grammar_program.py")


def answers_of(ranks: int, out: Path) -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    run = subprocess.run(
        [*torchrun, str(PROGRAM), str(out)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    answers: dict[str, dict[str, Any]] = json.loads(out.read_text())
    return answers


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("answers")
    return {ranks: answers_of(ranks, folder / f"{ranks}.json") for ranks in (1, 2)}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("drafts", DRAFTS)
def test_answers_under_a_grammar_are_those_of_one_rank_without_drafts(
    by_ranks: dict[int, dict[str, dict[str, Any]]], ranks: int, drafts: int
) -> None:
    result = by_ranks[ranks][str(drafts)]
    assert result["answers"] == by_ranks[1]["0"]["answers"]
    assert (result["held"] > 0) == (drafts > 0)


def test_every_answer_is_json_that_its_schema_accepts(by_ranks: dict[int, dict[str, dict[str, Any]]]) -> None:
    answers = by_ranks[1]["0"]["answers"]
    schemas = [schema for _ in QUESTIONS for schema in SCHEMAS for _ in TEMPERATURES]
    for answer, schema in zip(answers, schemas, strict=True):
        jsonschema.validate(json.loads(answer), schema)
    assert len(set(answers)) > len(SCHEMAS), "different questions have different answers"
