"""The runtime as `serve` runs it, engine, scheduler and sampler, but for HTTP and text; also under torchrun."""

import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.yardstick.errors import BenchmarkError
from benchmarks.yardstick.workers.protocol import answer, read_task, read_workload
from benchmarks.yardstick.workload import CONTEXT, Workload, decode_cell, prefill_cell, prompts, rates
from deepseek_runtime.dist.init import join_group
from deepseek_runtime.engine.build import load_rank, make_engine
from deepseek_runtime.engine.engine import Broken, Engine, Event, Request
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.settings import Settings

_LONGEST_ANSWER = 300.0


class Stream:
    """The tokens of one sequence and the moments in seconds at which they came."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.broken = ""
        self.ended = threading.Event()

    def receive(self, event: Event) -> None:
        """The engine's sink, on its thread."""
        if isinstance(event, Broken):
            self.broken = event.message
            self.ended.set()
            return
        self.times.append(time.perf_counter())
        self.tokens.append(event.sampled.token)
        if event.finish_reason is not None:
            self.ended.set()


def run(engine: Engine, texts: list[list[int]], new_tokens: int) -> list[Stream]:
    """Continue all prompts together, greedily, to exactly `new_tokens` tokens."""
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0)
    streams = [Stream(text) for text in texts]
    engine.submit([Request(tuple(stream.prompt), params, stream.receive) for stream in streams])
    for stream in streams:
        if not stream.ended.wait(_LONGEST_ANSWER):
            raise BenchmarkError(f"no answer of {new_tokens} tokens within {_LONGEST_ANSWER:.0f} s")
        if stream.broken:
            raise BenchmarkError(f"the engine failed: {stream.broken}")
    return streams


def step_ends(streams: list[Stream]) -> list[float]:
    """When the steps ended in which all sequences decoded."""
    first = max(stream.times[0] for stream in streams)
    last = min(stream.times[-1] for stream in streams)
    return [moment for moment in streams[0].times if first <= moment <= last]


class Measurement:
    """Times every cell of a workload on a started engine."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self._engine = engine
        self._workload = workload

    def decode(self, batch: int) -> tuple[list[float], list[Stream]]:
        """Rates of one batch size, and what was written."""
        texts = prompts(batch, CONTEXT, self._workload.vocab_size, f"decode {batch}")
        # Prompts are read in several steps: the first sequence is ahead of the last by as many.
        streams = run(self._engine, texts, self._workload.new_tokens + batch // 4)
        return rates(step_ends(streams), batch)[: self._workload.samples], streams

    def prefill(self, length: int) -> list[float]:
        """Seconds until the first token of one prompt, each time another."""
        seconds = []
        for text in prompts(self._workload.prefill_samples, length, self._workload.vocab_size, f"prefill {length}"):
            started = time.perf_counter()
            (stream,) = run(self._engine, [text], 1)
            seconds.append(stream.times[0] - started)
        return seconds

    def all(self) -> dict[str, Any]:
        """Samples by cell, tokens written by batch, seconds to the first token by length of the prompt."""
        samples: dict[str, list[float]] = {}
        written: dict[str, list[list[int]]] = {}
        for batch in self._workload.batches:
            samples[decode_cell(batch)], streams = self.decode(batch)
            written[str(batch)] = [[*stream.prompt, *stream.tokens] for stream in streams]
        seconds = {length: self.prefill(length) for length in (CONTEXT, *self._workload.prefills)}
        for length in self._workload.prefills:
            samples[prefill_cell(length)] = [length / value for value in seconds[length]]
        return {"samples": samples, "written": written, "first_token_s": {n: min(s) for n, s in seconds.items()}}


def main() -> None:
    """Load, serve the workload on rank 0, follow on the others."""
    task = read_task()
    workload = read_workload(task)
    settings = Settings(
        model=Path(task["checkpoint"]),
        served_model_name=("yardstick",),
        device="cpu",
        dtype=task["dtype"],
        kv_tokens=_cache_tokens(workload),
        **task.get("settings", {}),
    )
    group = join_group("cpu")
    started = time.perf_counter()
    loaded = load_rank(settings, group, lambda _: None)
    load_seconds = time.perf_counter() - started
    if group.rank:
        loaded.runner.follow(lambda _: None)
        return
    engine = make_engine(settings, loaded, group.device, lambda _: None)
    engine.start()
    run(engine, prompts(1, CONTEXT, workload.vocab_size, "warm up"), 2)
    result = Measurement(engine, workload).all()
    engine.stop(10.0)
    answer({**result, "load_s": load_seconds})


def _cache_tokens(workload: Workload) -> int:
    """Enough that nothing is preempted, with blocks that are only partly filled."""
    decoding = max(workload.batches, default=0) * (CONTEXT + workload.new_tokens + 128)
    return max(decoding, *workload.prefills, CONTEXT) + 1024


if __name__ == "__main__":
    main()
