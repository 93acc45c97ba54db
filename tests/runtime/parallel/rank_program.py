"""One rank of a real gloo group, under torchrun: `rank_program.py OUT` does OUT/job.json and writes OUT/<rank>.pt.

A job names a checkpoint, a layout, prompts with the rank that each lives on, and `run`: one of the functions below.
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights.load import load_model
from stepping import batch_of, block_table, new_cache

Job = dict[str, Any]


def logits(model: DeepSeekV3Model, group: Group, job: Job) -> dict[str, Any]:
    """Logits and drafts of every prompt, fed in a chunk of half its tokens, a second chunk, and single tokens."""
    own = [prompt for prompt, home in zip(job["prompts"], job["homes"], strict=True) if home in (group.rank, None)]
    cache = new_cache(model, 1024)
    tables, first = [], 0
    for prompt in own:
        tables.append(block_table(cache, len(prompt), first=first))
        first += len(tables[-1])
    states: list[list[Tensor]] = [[] for _ in own]
    drafts: list[list[Tensor]] = [[] for _ in own]
    balance = None
    for number, (start, stop) in enumerate(job["steps"]):
        if number == job.get("rebalance_before"):
            balance = model.rebalance()
        active = [index for index, prompt in enumerate(own) if start < len(prompt)]
        batch = batch_of((own[i][start:stop], start, tables[i]) for i in active)
        hidden = model.forward(batch, cache)
        following = torch.tensor([token for i in active for token in (own[i] + [7])[start + 1 : stop + 1]])
        drafted = model.draft_hidden(hidden, following.long(), batch, cache)
        for part, into in ((hidden, states), (drafted, drafts)):
            for i, rows in zip(active, torch.split(part, batch.query_lens), strict=True):
                into[i].append(rows)
    return {
        "logits": [model.logits(torch.cat(rows)) for rows in states],
        "drafts": [model.logits(torch.cat(rows)) for rows in drafts],
        "balance": balance and asdict(balance),
    }


def balanced(model: DeepSeekV3Model, group: Group, job: Job) -> dict[str, Any]:
    """The prompts again and again, experts moving amid the second time; the ranks' balance then and after."""
    logits(model, group, job)
    results = logits(model, group, job | {"rebalance_before": len(job["steps"]) // 2})
    model.rebalance(threshold=math.inf)
    logits(model, group, job)
    lasting = model.rebalance(threshold=math.inf).before
    return results | {"lasting": lasting}


RUNS = {function.__name__: function for function in (logits, balanced)}


def main() -> None:
    out = Path(sys.argv[1])
    job = json.loads((out / "job.json").read_text())
    group = join_group("cpu")
    model = load_model(
        Path(job["checkpoint"]),
        group,
        device=group.device,
        dtype=getattr(torch, job.get("dtype", "float32")),
        attention=job.get("attention", "data"),
        redundant_experts=job.get("redundant", 0),
        residency=job.get("residency", "auto"),
    )
    group.barrier("loaded", timeout=60)
    torch.save(RUNS[job["run"]](model, group, job), out / f"{group.rank}.pt")
    group.close()


if __name__ == "__main__":
    main()
