"""vLLM's CPU build, one engine step after the other, in its own environment."""

import os
import time

from benchmarks.yardstick.workers.protocol import answer, read_task, read_workload
from benchmarks.yardstick.workload import CONTEXT, Workload, decode_cell, prefill_cell, prompts, rates

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # an environment of its own has it


class Measurement:
    """Times every cell of a workload."""

    def __init__(self, model: LLM, workload: Workload) -> None:
        self._engine = model.llm_engine
        self._workload = workload
        self._requests = 0

    def decode(self, batch: int) -> list[float]:
        """Rates of greedy decoding; the first steps still read prompts, the last one lacks sequences."""
        texts = prompts(batch, CONTEXT, self._workload.vocab_size, f"decode {batch}")
        return rates(self._run(texts, self._workload.new_tokens)[2:-1], batch)[: self._workload.samples]

    def prefill(self, length: int) -> list[float]:
        """Rates of reading one prompt, each time another."""
        values = []
        for text in prompts(self._workload.prefill_samples, length, self._workload.vocab_size, f"prefill {length}"):
            started = time.perf_counter()
            values.append(length / (self._run([text], 2)[0] - started))
        return values

    def _run(self, texts: list[list[int]], new_tokens: int) -> list[float]:
        """When each step ended, from reading the prompts to the last token."""
        params = SamplingParams(temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True)
        for text in texts:
            self._requests += 1
            self._engine.add_request(str(self._requests), {"prompt_token_ids": text}, params)
        ends = []
        while self._engine.has_unfinished_requests():
            self._engine.step()
            ends.append(time.perf_counter())
        return ends


def main() -> None:
    """Load and measure. Prompts are read in one step and eagerly, which was this engine's fastest way here."""
    task = read_task()
    workload = read_workload(task)
    started = time.perf_counter()
    model = LLM(
        task["checkpoint"],
        dtype=task["dtype"],
        max_model_len=4096,
        max_num_seqs=max(workload.batches, default=1),
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        enforce_eager=True,
        seed=0,
    )
    load_seconds = time.perf_counter() - started
    measurement = Measurement(model, workload)
    samples = {decode_cell(batch): measurement.decode(batch) for batch in workload.batches}
    samples |= {prefill_cell(length): measurement.prefill(length) for length in workload.prefills}
    answer({"samples": samples, "load_s": load_seconds})


if __name__ == "__main__":
    main()
