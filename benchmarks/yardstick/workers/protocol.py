"""How a measuring process is told what to do and how it answers; libraries may write to stdout as they like."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.yardstick.workload import Workload


def read_task() -> dict[str, Any]:
    """The task from the command line, a JSON object."""
    task: dict[str, Any] = json.loads(sys.argv[1])
    return task


def read_workload(task: dict[str, Any]) -> Workload:
    """The cells that a task asks for."""
    fields: dict[str, Any] = task["workload"]
    lists = {name: tuple(fields[name]) for name in ("batches", "prefills")}
    return Workload(**{**fields, **lists})


def answer(result: dict[str, Any]) -> None:
    """Leave the result for whoever started this process."""
    Path(sys.argv[2]).write_text(json.dumps(result))
