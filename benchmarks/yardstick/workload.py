"""What every engine is asked to do, in words that all of them share. Standard library only: each peer imports it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

CONTEXT = 64
"""Tokens in the cache of every sequence when its decoding is timed."""

STEPS = 8
"""Decoding steps of one sample: as short as llama-bench's, so that the best of many is equally lucky for all."""

_FIRST_TOKEN = 10


@dataclass(frozen=True, slots=True)
class Workload:
    """Cells to measure; each gets `samples` samples from every process that is started."""

    batches: tuple[int, ...]
    prefills: tuple[int, ...]
    samples: int
    prefill_samples: int
    vocab_size: int

    @property
    def new_tokens(self) -> int:
        """Tokens that a sequence must write until all samples are taken, with the first and the last step to spare."""
        return self.samples * STEPS + 4

    @property
    def cells(self) -> list[str]:
        """Names of all figures."""
        return [*map(decode_cell, self.batches), *map(prefill_cell, self.prefills)]


def decode_cell(batch: int) -> str:
    """Tokens per second of all sequences together."""
    return f"decode_{batch}"


def prefill_cell(length: int) -> str:
    """Prompt tokens per second of one prompt alone."""
    return f"prefill_{length}"


def prompts(count: int, length: int, vocab_size: int, seed: str) -> list[list[int]]:
    """`count` random prompts, unlike each other and those of another seed: no prefix is shared."""
    source = random.Random(seed)
    return [[source.randrange(_FIRST_TOKEN, vocab_size) for _ in range(length)] for _ in range(count)]


def rates(ends: Sequence[float], batch: int) -> list[float]:
    """Tokens per second of each full sample, from the moments in seconds at which steps ended."""
    starts = range(0, len(ends) - STEPS, STEPS)
    return [batch * STEPS / (ends[start + STEPS] - ends[start]) for start in starts]
