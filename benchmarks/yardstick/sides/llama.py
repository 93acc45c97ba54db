"""llama.cpp."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.yardstick import checkpoint
from benchmarks.yardstick.console import logged, step
from benchmarks.yardstick.launch import Cores, Finished, run
from benchmarks.yardstick.peers import llama_build
from benchmarks.yardstick.places import REPOSITORY, cache_folder, making, require_disk
from benchmarks.yardstick.sides.side import TIMEOUT, Answer
from benchmarks.yardstick.workload import CONTEXT, STEPS, Workload, decode_cell, prefill_cell

Samples = dict[str, list[float]]


@dataclass(slots=True)
class LlamaCpp:
    """llama.cpp by its own two benchmarks, which feed random tokens and do not sample.

    Its threads spin at barriers: with two of them any other busy process makes it several times slower, so that only
    the best of many short repetitions says how fast it is.
    """

    name: str = "llama"
    title: str = "llama.cpp"
    _built: llama_build.LlamaCpp | None = field(default=None, init=False)

    def prepare(self) -> None:
        self._built = llama_build.build()
        self._model()

    def run(self, workload: Workload, cores: Cores) -> Answer:
        samples: Samples = {}
        peaks = [0]
        for cell, flags in _single_tests(workload).items():
            finished = self._program("llama-bench", cores, [*flags, "-o", "json"])
            samples[cell] = json.loads(finished.stdout)[0]["samples_ts"]
            peaks.append(finished.peak_rss)
        if any(batch > 1 for batch in workload.batches):
            flags = [*_batched_flags(workload), "-tb", cores.threads, "--output-format", "jsonl"]
            finished = self._program("llama-batched-bench", cores, flags)
            samples |= _batched_samples(finished.stdout)
            peaks.append(finished.peak_rss)
        return {"samples": samples, "peak_rss": max(peaks)}

    def _program(self, name: str, cores: Cores, flags: list[object]) -> Finished:
        command = [self._llama.programs / name, "-m", self._model(), "-t", cores.threads, *flags]
        return run(command, cores, TIMEOUT, {})

    @property
    def _llama(self) -> llama_build.LlamaCpp:
        assert self._built is not None, "prepare() comes first"
        return self._built

    def _model(self) -> Path:
        """The model in llama.cpp's own format, BF16, made on first use."""
        source, target = checkpoint.bf16_checkpoint(), cache_folder() / "model-bf16.gguf"
        stamp = f"{llama_build.VERSION} {source.with_name(f'{source.name}.stamp').read_text()}"
        with making(target, stamp) as missing:
            if missing:
                require_disk(target.parent, 3, "The model in llama.cpp's format")
                with step("Converting the model for llama.cpp"):
                    converter = [sys.executable, "-m", "benchmarks.yardstick.peers.gguf", self._llama.sources]
                    log, path = target.with_suffix(".log"), {"PYTHONPATH": str(REPOSITORY)}
                    logged([*converter, source, target, "bf16"], log, path)
        return target


def _single_tests(workload: Workload) -> dict[str, list[object]]:
    """Flags of llama-bench by cell."""
    tests: dict[str, list[object]] = {}
    if 1 in workload.batches:
        tests[decode_cell(1)] = ["-p", 0, "-n", STEPS, "-d", CONTEXT, "-r", workload.samples]
    for length in workload.prefills:
        tests[prefill_cell(length)] = ["-p", length, "-n", 0, "-r", workload.prefill_samples]
    return tests


def _batched_flags(workload: Workload) -> list[object]:
    """Flags of llama-batched-bench: each batch size as often as samples are wanted."""
    batches = [batch for batch in workload.batches if batch > 1]
    parallel = ",".join(str(batch) for batch in batches for _ in range(workload.samples))
    room = 2 * max(batches) * (CONTEXT + STEPS)
    return ["-c", room, "-npp", CONTEXT, "-ntg", STEPS, "-npl", parallel]


def _batched_samples(stdout: str) -> Samples:
    samples: Samples = {}
    for row in (json.loads(line) for line in stdout.splitlines() if line.startswith("{")):
        samples.setdefault(decode_cell(row["pl"]), []).append(row["speed_tg"])
    return samples
