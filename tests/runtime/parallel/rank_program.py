"""One rank of a real gloo group, under torchrun: `rank_program.py OUT` does OUT/job.json and writes OUT/<rank>.pt.

A job names a checkpoint, a layout, prompts with the rank that each lives on, and `run`: one of the functions below.
"""

import json
import math
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.engine import Engine, Event, Request, Token
from deepseek_runtime.engine.executor import ModelExecutor
from deepseek_runtime.engine.runner import Runner
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.scheduler import Scheduler
from deepseek_runtime.engine.sequence import Sequence
from deepseek_runtime.engine.step import Operation
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights.load import load_model
from stepping import BLOCK_SIZE, batch_of, block_table, new_cache

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


def serve(model: DeepSeekV3Model, group: Group, job: Job) -> dict[str, Any]:
    """Answers of the real engine to waves of prompts, each at home on the ranks that the job says; with idle time
    between them, whose share of a processor each rank tells."""
    pools = [BlockManager(16, BLOCK_SIZE) for _ in range(group.world_size)]
    executor = ModelExecutor(model, new_cache(model, 16 * BLOCK_SIZE), group, data_parallel=True)
    runner = Runner(executor, group, vocab_size=model.config.vocab_size, speculative_tokens=job["depth"])
    scheduler = Scheduler(*pools, token_budget=24, max_running=8)
    every = job.get("rebalance_every", 0)
    engine = Engine(runner, scheduler, max_queued=8, on_failure=sys.exit, keep_alive=0.5, rebalance_every=every)
    messages: list[Operation] = []
    work = threading.Thread(target=runner.follow, args=(messages.append,))
    engine.start() if group.rank == 0 else work.start()
    answers, idle = [], []
    for number, wave in enumerate(job["waves"]):
        if group.rank == 0:
            answers += ask(engine, pools, wave)
        group.barrier(f"wave {number}", timeout=120)
        idle.append(idle_share(job["idle_seconds"]))
        group.barrier(f"rest {number}", timeout=120)
    engine.stop(60) if group.rank == 0 else work.join(60)
    return {"answers": answers, "idle": idle, "messages": list(map(int, messages))}


def ask(engine: Engine, pools: list[BlockManager], wave: list[dict[str, Any]]) -> list[list[int]]:
    """The answers to prompts that run together. Pools of other ranks than the wanted ones are full meanwhile."""
    wanted = {question["home"] for question in wave} if len(pools) > 1 else {0}
    greedy = SamplingParams(max_tokens=1, temperature=0)
    occupied = [(pool, Sequence(-1, (0,) * pool.capacity, greedy)) for r, pool in enumerate(pools) if r not in wanted]
    for pool, stranger in occupied:
        pool.admit(stranger, [])
    events: list[queue.SimpleQueue[Event]] = [queue.SimpleQueue() for _ in wave]
    requests = [
        Request(tuple(q["prompt"]), SamplingParams(max_tokens=q["max_tokens"], temperature=0), sink.put)
        for q, sink in zip(wave, events, strict=True)
    ]
    engine.submit(requests)
    answers = [list(tokens_of(sink)) for sink in events]
    for pool, stranger in occupied:
        pool.release(stranger)
    return answers


def tokens_of(events: queue.SimpleQueue[Event]) -> Iterator[int]:
    """The tokens of one answer, to its end."""
    finished = None
    while finished is None:
        event = events.get(timeout=120)
        assert isinstance(event, Token), event
        finished = event.finish_reason
        yield event.sampled.token


def idle_share(seconds: float) -> float:
    """Processor seconds per second that this process uses while it has nothing to do."""
    wall, processor = time.monotonic(), time.process_time()
    threading.Event().wait(seconds)
    return (time.process_time() - processor) / (time.monotonic() - wall)


def apart(model: DeepSeekV3Model, group: Group, job: Job) -> list[dict[str, Any]]:
    """All prompts together, then each alone."""
    each = zip(job["prompts"], job["homes"], strict=True)
    singles = [{"prompts": [prompt], "homes": [home]} for prompt, home in each]
    return [logits(model, group, job), *(logits(model, group, job | single) for single in singles)]


RUNS = {function.__name__: function for function in (logits, balanced, apart, serve)}


def main() -> None:
    out = Path(sys.argv[1])
    job = json.loads((out / "job.json").read_text())
    invariant = job.get("batch_invariant", False)
    group = join_group("cpu", ordered_sums=invariant)
    model = load_model(
        Path(job["checkpoint"]),
        group,
        device=group.device,
        dtype=getattr(torch, job.get("dtype", "float32")),
        attention=job.get("attention", "data"),
        redundant_experts=job.get("redundant", 0),
        residency=job.get("residency", "auto"),
        batch_invariant=invariant,
    )
    group.barrier("loaded", timeout=60)
    torch.save(RUNS[job["run"]](model, group, job), out / f"{group.rank}.pt")
    group.close()


if __name__ == "__main__":
    main()
