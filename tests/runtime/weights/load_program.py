"""Load a checkpoint in one rank, alone or under torchrun, and write what it took: `load_program.py FOLDER DTYPE
RESIDENCY OUT` writes OUT/<rank>.json."""

import json
import sys
from pathlib import Path

import torch

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.weights.load import LoadSummary, load_model


def memory(field: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(folder: str, dtype: str, residency: str, out: str) -> None:
    """Write peak memory above that before loading, and the summary's figures."""
    group = join_group("cpu")
    group.all_reduce_sum(torch.zeros(1))  # connects the ranks, which is no part of loading
    summaries: list[LoadSummary] = []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, not at the imports
    before = memory("VmRSS")
    model = load_model(
        Path(folder),
        group,
        device=torch.device("cpu"),
        dtype=getattr(torch, dtype),
        residency=residency,  # type: ignore[arg-type]
        on_loaded=summaries.append,
    )
    peak = memory("VmHWM") - before
    assert model.config.num_layers
    group.barrier("loaded", timeout=120)
    figures = {"peak": peak, "held": summaries[0].held, "read": summaries[0].read}
    Path(out, f"{group.rank}.json").write_text(json.dumps(figures))
    group.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
