"""The layout's one trap: a package at `operator/` would take the place of the standard library's module."""

import operator
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("folder", ["operator", "runtime"])
def test_top_level_folders_are_not_packages(folder: str) -> None:
    assert not (REPOSITORY / folder / "__init__.py").exists(), (
        f"{folder}/__init__.py would shadow or nest packages: the package is one folder deeper"
    )


def test_the_standard_operator_module_wins_in_the_repository_root() -> None:
    here = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.__file__)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert here.stdout.strip() == operator.__file__
