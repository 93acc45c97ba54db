"""What this machine can do at best: read memory, multiply a BF16 matrix by a vector, and by a prompt of 512 tokens."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.yardstick.workers.protocol import answer, read_task

_BYTES = 2**29  # far more than any cache
_ROWS, _COLUMNS, _PROMPT = 1024, 4096, 512


def rates(work: Callable[[], object], amount: float, times: int) -> list[float]:
    """Amount (bytes, operations) in 1e9 per second of each of several passes, after one that does not count."""
    work()
    values = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        values.append(amount / (time.perf_counter() - started) / 1e9)
    return values


def main() -> None:
    """Measure the three."""
    times = read_task()["times"]
    plain = torch.ones(_BYTES // 4)
    matrices = torch.ones(_BYTES // 2 // _ROWS // _COLUMNS, _ROWS, _COLUMNS, dtype=torch.bfloat16)
    vector = torch.ones(1, _COLUMNS, dtype=torch.bfloat16)
    prompt, matrix = torch.ones(_PROMPT, _COLUMNS, dtype=torch.bfloat16), matrices.view(-1, _COLUMNS)[: 8 * _ROWS]
    operations = 2 * _PROMPT * matrix.numel()
    with torch.inference_mode():
        read = rates(plain.sum, _BYTES, times)
        matvec = rates(lambda: [functional.linear(vector, matrix) for matrix in matrices], _BYTES, times)
        matmul = rates(lambda: functional.linear(prompt, matrix), operations, times)
    answer({"read": read, "matvec": matvec, "matmul": matmul})


if __name__ == "__main__":
    main()
