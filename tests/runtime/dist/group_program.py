"""One rank of a real group: `torchrun … group_program.py exchange|mourn|stall FOLDER`; each writes FOLDER/<rank>.json.

`exchange` tries every operation and leaves in peace. `mourn` writes its process id, then waits for a death and writes
when it was noticed, by the clock that all processes share. `stall` is the same, but rank 1 does not join a sum.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from deepseek_runtime.dist.group import Group
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.dist.liveness import Callbacks


def exchange(group: Group) -> dict[str, Any]:
    lost: list[int | None] = []
    group.watch(Callbacks(lambda rank, _: lost.append(rank)))
    group.report_progress(1, 1)
    group.barrier("weights", timeout=60)
    lists = [[], [7], list(range(-3, 60)), list(range(500)), [2**62]]
    received = [group.broadcast_ints(values if group.rank == 0 else None) for values in lists]
    sums = {
        str(dtype): group.all_reduce_sum(torch.tensor([1.5, group.rank], dtype=dtype)).tolist()
        for dtype in (torch.float32, torch.bfloat16)
    }
    empty = group.all_reduce_sum(torch.empty(0, 4)).shape
    idle = idle_cpu_share(group)
    group.close()
    return {
        "place": [group.rank, group.world_size, group.local_rank, str(group.device)],
        "intact": received == lists,
        "sums": sums,
        "empty": list(empty),
        "idle_cpu_share": idle,
        "lost": lost,
    }


def idle_cpu_share(group: Group) -> float:
    """Processor seconds per second while the next step is awaited, which comes after one second."""
    if group.rank == 0:
        threading.Event().wait(1)
    wall, processor = time.monotonic(), time.process_time()
    group.broadcast_ints([1] if group.rank == 0 else None)
    return (time.process_time() - processor) / (time.monotonic() - wall) if group.rank else 0.0


def mourn(group: Group, write: Any, *, stall: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's own reaction must not end this rank first.

    def on_lost(rank: int | None, reason: str) -> None:
        write({"lost": rank, "reason": reason, "at": time.monotonic()})
        os._exit(3)

    group.watch(Callbacks(on_lost))
    group.barrier("weights", timeout=60)
    write({"pid": os.getpid()})
    if stall:
        group.expect_progress(1)
    group.broadcast_ints(None if group.rank else [1])
    if stall and group.rank == 0:
        group.all_reduce_sum(torch.ones(1))
    if stall:
        signal.pause()
    signal.pause() if group.rank == 0 else group.broadcast_ints(None)


def main() -> None:
    mode, folder = sys.argv[1:]
    group = join_group("cpu")

    def write(result: dict[str, Any]) -> None:
        part = Path(folder, f"{group.rank}.part")
        part.write_text(json.dumps(result))
        part.rename(Path(folder, f"{group.rank}.json"))

    if mode == "exchange":
        write(exchange(group))
    else:
        mourn(group, write, stall=mode == "stall")


if __name__ == "__main__":
    main()
