"""One session: check what is timed, then let the engines take turns, then what only concerns the runtime itself.

Turns (ours, a peer, the next peer, ours again …) and not one engine after the other: whatever the machine is busy with
meanwhile then hits all of them.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from benchmarks.yardstick import checkpoint, machine
from benchmarks.yardstick.console import say, step
from benchmarks.yardstick.errors import BenchmarkError
from benchmarks.yardstick.launch import Cores, measure
from benchmarks.yardstick.model_bytes import ModelBytes, matrix_parameters, model_bytes
from benchmarks.yardstick.results import Figure, Results, SideFigures, ThreadFigures, decode_ceilings
from benchmarks.yardstick.sides import OURS, OURS_FP8, PEERS
from benchmarks.yardstick.sides.side import Answer, Side
from benchmarks.yardstick.workload import Workload, prefill_cell
from deepseek_runtime.settings import OPENMP

CONTEXTS = tuple(1024 * 2**power for power in range(6))
RANKS = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. `thorough` adds loading, long contexts and several ranks."""

    workload: Workload
    threads: tuple[int, ...]
    rounds: int
    peers: tuple[str, ...]
    thorough: bool
    command: str


class Session:
    """Measures into `results`; whatever cannot be measured is told there and does not end the session."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._own = [OURS, OURS_FP8]
        self._sizes = {side.name: model_bytes(side.folder()) for side in self._own}
        self._written: dict[str, list[list[int]]] = {}
        self.results = Results(
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            command=options.command,
            machine=machine.describe(),
            versions=machine.versions(),
            model=_describe(self._sizes),
            own=[side.name for side in self._own],
            peers=list(options.peers),
        )

    def run(self) -> Results:
        """All of it. BenchmarkError only where the runtime itself cannot be measured."""
        sides = self._prepared()
        self._optional("agreement", self._check_agreement)
        for threads in self._options.threads:
            self.results.threads.append(self._compare(sides, ThreadFigures(threads)))
        self._optional("touched experts", self._count_experts)
        self._set_ceilings()
        if self._options.thorough:
            self._optional("loading", self._time_loading)
            self._optional("context", self._time_contexts)
            self._optional("ranks", self._time_ranks)
        self.results.machine["load_after"] = round(os.getloadavg()[0], 2)
        return self.results

    def _prepared(self) -> list[Side]:
        sides: list[Side] = list(self._own)
        for side in (PEERS[name] for name in self._options.peers):
            if self._optional(side.name, side.prepare):
                sides.append(side)
        return sides

    def _optional(self, name: str, work: Callable[[], object]) -> bool:
        """Do something that the session can do without; whether it was done."""
        try:
            work()
        except BenchmarkError as error:
            say(f"{name} is left out: {error}")
            self.results.missing[name] = str(error)
            return False
        return True

    def _compare(self, sides: Sequence[Side], found: ThreadFigures) -> ThreadFigures:
        cores = Cores(found.threads)
        left = list(sides)
        for number in range(1, self._options.rounds + 1):
            with step(f"{found.threads} thread{'s' * (found.threads > 1)}, round {number} of {self._options.rounds}"):
                for name, samples in measure("bandwidth", {"times": 8}, cores).items():
                    if name != "peak_rss":
                        found.machine.setdefault(name, Figure()).add(samples)
                for side in list(left):
                    if not self._turn(side, cores, found):
                        left.remove(side)
        return found

    def _turn(self, side: Side, cores: Cores, found: ThreadFigures) -> bool:
        """One run of one engine; one that fails is not tried again, unless it is ours: then nothing can be said."""
        say(f"  {side.title} …")
        if side is OURS:
            self._keep(side, side.run(self._options.workload, cores), found)
            return True
        work = lambda: self._keep(side, side.run(self._options.workload, cores), found)  # noqa: E731
        return self._optional(f"{side.name} with {cores.threads} threads", work)

    def _keep(self, side: Side, answer: Answer, found: ThreadFigures) -> None:
        if side is OURS:
            self._written = answer["written"]
        found.sides.setdefault(side.name, SideFigures()).add(answer)

    def _check_agreement(self) -> None:
        with step("Comparing logits with transformers in float32"):
            task = {"checkpoint": str(OURS.folder()), "vocab_size": self._options.workload.vocab_size}
            answer = measure("agreement", task, _all_cores())
        self.results.agreement = {name: value for name, value in answer.items() if name != "peak_rss"}

    def _count_experts(self) -> None:
        with step("Counting the experts that the timed steps touched"):
            task = {"checkpoint": str(OURS.folder()), "written": self._written}
            answer = measure("routing", task, _all_cores())
        self.results.touched_experts = {batch: answer[batch] for batch in self._written}

    def _set_ceilings(self) -> None:
        per_token = checkpoint.CONFIG["num_experts_per_tok"]
        touched = self.results.touched_experts or {
            str(batch): self._sizes[OURS.name].uniform(batch, per_token) for batch in self._options.workload.batches
        }
        operations = 2 * matrix_parameters(checkpoint.CONFIG, self._sizes[OURS.name], 2)
        for part in self.results.threads:
            prompt = part.machine["matmul"].best * 1e9 / operations
            for name, sizes in self._sizes.items():
                part.ceilings[name] = decode_ceilings(sizes, touched, part.machine["matvec"].best)
                part.ceilings[name] |= {prefill_cell(n): prompt for n in self._options.workload.prefills}

    def _time_loading(self) -> None:
        for side in self._own:
            with step(f"Loading, {side.title}"):
                weights = "fp8" if side.fp8 else "auto"
                task = {"checkpoint": str(side.folder()), "dtype": "bfloat16", "weights": weights, "times": 5}
                self.results.loading[side.name] = measure("loading", task, _all_cores(), environment=OPENMP)

    def _time_contexts(self) -> None:
        with step("Decoding behind long contexts"):
            task = {"checkpoint": str(OURS.folder()), "dtype": "bfloat16", "contexts": CONTEXTS, "samples": 4}
            answer = measure("context", task, Cores(self._options.threads[0]))
        self.results.context_s = {str(n): min(answer[str(n)]) for n in CONTEXTS}
        sizes, bandwidth = self._sizes[OURS.name], self.results.threads[0].machine["matvec"].best * 1e9
        touched = sizes.layers_with_experts * checkpoint.CONFIG["num_experts_per_tok"]
        self.results.context_roofline_s = {str(n): sizes.step(touched, 1, n) / bandwidth for n in CONTEXTS}

    def _time_ranks(self) -> None:
        workload = replace(self._options.workload, batches=(1, 16), prefills=(512,))
        for ranks in RANKS:
            with step(f"{ranks} rank{'s' * (ranks > 1)} with a thread each"):
                found = SideFigures()
                for _ in range(self._options.rounds):
                    found.add(OURS.run(workload, Cores(ranks), ranks))
            self.results.ranks[str(ranks)] = {cell: figure.best for cell, figure in found.cells.items()}


def _all_cores() -> Cores:
    return Cores(len(os.sched_getaffinity(0)))


def _describe(sizes: dict[str, ModelBytes]) -> dict[str, Any]:
    config = checkpoint.CONFIG
    active = matrix_parameters(config, sizes[OURS.name], 2) + config["vocab_size"] * config["hidden_size"]
    return {
        "parameters": sizes[OURS.name].total // 2,
        "active_parameters": round(active),
        "bytes": {name: asdict(size) for name, size in sizes.items()},
    }
