"""Pins go without addresses, so that the project installs through whatever index its user has configured."""

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def _tracked_text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def test_constraints_are_plain_pins() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+(\[[a-z,]+\])?==[A-Za-z0-9.+!]+( ;.*)?", pin) for pin in pins)


def test_no_lock_file_with_addresses_is_tracked() -> None:
    assert not [path.name for path in _tracked_text_files() if path.name in {"uv.lock", "poetry.lock", "Pipfile.lock"}]
