"""transformers' DeepseekV3ForCausalLM: eager experts (its fastest on a CPU), SDPA, a dynamic cache, no `generate`."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from benchmarks.yardstick.workers.protocol import answer, read_task, read_workload
from benchmarks.yardstick.workload import CONTEXT, Workload, decode_cell, prefill_cell, prompts, rates


def load(folder: str, dtype: torch.dtype) -> Any:
    """The model in evaluation mode; the MTP layer that it does not know is reported by it at length, so hush."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.set_experts_implementation("eager")
    return model.eval()


class Measurement:
    """Times every cell of a workload."""

    def __init__(self, model: Any, workload: Workload) -> None:
        self._model = model
        self._workload = workload

    def decode(self, batch: int) -> list[float]:
        """Rates of greedy decoding, one forward pass a step."""
        cache = DynamicCache(config=self._model.config)
        token = self._forward(self._texts(batch, CONTEXT, f"decode {batch}"), cache)
        ends = []
        for _ in range(self._workload.new_tokens):
            token = self._forward(token, cache)
            ends.append(time.perf_counter())
        return rates(ends, batch)[: self._workload.samples]

    def prefill(self, length: int) -> list[float]:
        """Rates of reading one prompt, each time another."""
        values = []
        for text in self._texts(self._workload.prefill_samples, length, f"prefill {length}"):
            started = time.perf_counter()
            self._forward(text[None], DynamicCache(config=self._model.config))
            values.append(length / (time.perf_counter() - started))
        return values

    def _texts(self, count: int, length: int, seed: str) -> Tensor:
        return torch.tensor(prompts(count, length, self._workload.vocab_size, seed))

    @torch.inference_mode()
    def _forward(self, tokens: Tensor, cache: DynamicCache) -> Tensor:
        output = self._model(tokens, cache=cache, use_cache=True, logits_to_keep=1)
        token: Tensor = output.logits[:, -1:].argmax(-1)
        return token


def main() -> None:
    """Load and measure."""
    task = read_task()
    workload = read_workload(task)
    started = time.perf_counter()
    model = load(task["checkpoint"], getattr(torch, task["dtype"]))
    load_seconds = time.perf_counter() - started
    measurement = Measurement(model, workload)
    samples = {decode_cell(batch): measurement.decode(batch) for batch in workload.batches}
    samples |= {prefill_cell(length): measurement.prefill(length) for length in workload.prefills}
    answer({"samples": samples, "load_s": load_seconds})


if __name__ == "__main__":
    main()
