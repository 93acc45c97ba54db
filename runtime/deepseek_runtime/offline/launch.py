"""Starts this machine's ranks as `torchrun --standalone` would, on a free port, but ends without a traceback."""

from __future__ import annotations

import logging
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence

from deepseek_runtime.settings import share_processors

INTERRUPTED = 128 + signal.SIGINT
REFUSED = 2

PATIENCE_SECONDS = 10.0
"""After these the first rank of a machine has either refused the same, or does not refuse at all."""


def launch(processes: int, module: str, arguments: Sequence[str]) -> int:
    """Run a module in as many ranks; the exit code: of the rank that failed first, or that of an interruption."""
    share_processors(processes)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _silence()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 1
    return 0


def refuse(sentence: str, environ: Mapping[str, str]) -> int:
    """Write, on each machine once, why this rank does not meet the others; the exit code.

    torchrun ends all ranks of a machine as soon as one has ended, also one that has not yet said why it refuses. So the
    machine's first rank speaks, and the others wait to be ended; where it has nothing to say, they speak after a while.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE_SECONDS)
    rank = environ.get("RANK", "0")
    sys.stderr.write(f"error: {sentence}\n" if rank == "0" else f"error: rank {rank}: {sentence}\n")
    return REFUSED


def _silence() -> None:
    """The ranks say in a sentence what went wrong; the launcher would say it again in forty lines."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
