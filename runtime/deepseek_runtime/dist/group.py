"""The ranks that serve one model together, as the rest of the runtime sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from deepseek_runtime.dist.barrier import StoreBarrier
from deepseek_runtime.dist.liveness import Callbacks, Liveness, LostRankError
from deepseek_runtime.dist.marks import marker
from deepseek_runtime.dist.progress import Progress
from deepseek_runtime.dist.topology import Topology
from deepseek_runtime.health import Suspect

Result = TypeVar("Result")

EXPLANATION_SECONDS = 3.0
"""Within this time after an exchange failed, the watch over the ranks names the one that died, if that was why."""


class Group:
    """A group of one: every exchange is the identity. Base of the real one, so that callers never ask which it is."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    nodes: int = 1
    """Machines that hold equally many neighbouring ranks; 1 where they do not."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks; it may be overwritten. Every rank gets the same bits."""
        return tensor

    def start_sum(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin `all_reduce_sum`; what is returned waits for the result, so that work can go on meanwhile."""
        return lambda: tensor

    def all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Exchange rows of any shape: the first `sent[0]` go to rank 0, the next `sent[1]` to rank 1, and so on.

        The result holds `received[r]` rows of each rank r, in the order of ranks. Every rank takes part, also without
        rows; what one sends another must expect.
        """
        return rows

    def start_all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Callable[[], Tensor]:
        """Begin `all_to_all`; `rows` stay untouched until what is returned has waited for the result."""
        return lambda: rows

    def exchange_counts(self, counts_W: Tensor) -> tuple[list[int], list[int]]:
        """What this rank announces to each rank, as a list, and what each announces to it."""
        own: list[int] = counts_W.tolist()
        return own, own

    def gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        """All ranks' rows on rank 0, in the order of ranks; the others get their own back.

        `counts` is the number of rows of each rank, known to all of them; with rows on rank 0 only nothing is sent.
        """
        return rows

    def broadcast_ints(self, values: list[int] | None) -> list[int]:
        """Rank 0's list, on every rank; the others pass None and sleep until it comes."""
        assert values is not None, "rank 0 gives the values"
        return values

    def barrier(self, name: str, timeout: float, on_wait: Callable[[str], None] | None = None) -> None:
        """Wait until every rank is here; see `StoreBarrier.wait`. Each name once."""

    def report_progress(self, done: int, total: int) -> None:
        """Let the ranks that wait at a barrier know how far this one has come, in any unit."""

    def watch(self, callbacks: Callbacks) -> None:
        """From now on have these called, on a thread of their own, when a rank dies or leaves."""

    def expect_progress(self, within: float) -> None:
        """On a watched rank 0: from now on take the rank that lets the others wait for so many seconds for lost."""

    def suspect(self) -> Suspect | None:
        """On a watched rank 0: the rank that holds up the others by now, before it counts as lost."""
        return None

    def rank_ages(self) -> dict[int, float]:
        """On a watched rank 0: seconds since each rank got further."""
        return {}

    def fail(self, code: int, sentence: str) -> None:
        """Tell the watching ranks why this one ends with an exit code; otherwise like `leave`."""

    def leave(self) -> None:
        """Say goodbye: the others do not take the end of this rank for a death. Nothing can be exchanged any more."""

    def close(self) -> None:
        """Leave the group and free what it holds. No collective may be pending."""


class ProcessGroup(Group):
    """A group over `torch.distributed`: tensors by the device's backend, integers always by gloo on the CPU.

    A pending NCCL broadcast would keep a processor and the GPU spinning while the server idles.

    With `ordered_sums` numbers are added in the order of ranks. Libraries add in an order that depends on where in the
    tensor an element lies, so that a token's bits would depend on the others of its step.
    """

    HEADER = 64
    """Integers sent at once: the length, then as much of the list as fits; most steps need no second message."""

    def __init__(self, topology: Topology, device: torch.device, store: Store, *, ordered_sums: bool = False) -> None:
        super().__init__(device)
        self.rank, self.world_size, self.local_rank = topology.rank, topology.world_size, topology.local_rank
        nodes, rest = divmod(topology.world_size, topology.local_world_size)
        self.nodes = 1 if rest else nodes
        # Two numbers have the same sum in either order.
        self._ordered_sums = ordered_sums and topology.world_size > 2
        self._topology = topology
        self._store = store
        self._barrier = StoreBarrier(store, topology.rank, topology.world_size)
        self._progress = Progress()
        self._marker = marker(device)
        self._liveness: Liveness | None = None

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return self.start_sum(tensor)()

    def start_sum(self, tensor: Tensor) -> Callable[[], Tensor]:
        if not tensor.numel():
            return lambda: tensor
        if self._ordered_sums:
            own, parts = tensor.flatten(), tensor.new_empty(self.world_size * tensor.numel())
            gather = self._start(lambda: dist.all_gather_into_tensor(parts, own, async_op=True), parts)
            return lambda: _sum_in_order(gather().view(self.world_size, *tensor.shape))
        return self._start(lambda: dist.all_reduce(tensor, async_op=True), tensor)

    def all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        return self.start_all_to_all(rows, sent, received)()

    def start_all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Callable[[], Tensor]:
        result = rows.new_empty((sum(received), *rows.shape[1:]))
        own = rows.contiguous()
        return self._start(lambda: dist.all_to_all_single(result, own, received, sent, async_op=True), result)

    def exchange_counts(self, counts_W: Tensor) -> tuple[list[int], list[int]]:
        announced = torch.empty_like(counts_W)
        with self._progress:
            self._explained(lambda: dist.all_to_all_single(announced, counts_W))
        own, others = torch.stack((counts_W, announced)).tolist()
        return own, others

    def gather_rows(self, rows: Tensor, counts: list[int]) -> Tensor:
        if not any(counts[1:]):
            return rows
        elsewhere = [0] * (self.world_size - 1)
        gathered = self.all_to_all(
            rows, [counts[self.rank], *elsewhere], counts if self.rank == 0 else [0] * self.world_size
        )
        return gathered if self.rank == 0 else rows

    def broadcast_ints(self, values: list[int] | None) -> list[int]:
        room = self.HEADER - 1
        if self.rank == 0:
            assert values is not None, "rank 0 gives the values"
            head = [len(values), *values[:room]]
            self._broadcast(torch.tensor(head + [0] * (self.HEADER - len(head)), dtype=torch.int64))
            if len(values) > room:
                self._broadcast(torch.tensor(values[room:], dtype=torch.int64))
            return values
        length, *received = self._broadcast(torch.zeros(self.HEADER, dtype=torch.int64))
        if length > room:
            received += self._broadcast(torch.zeros(length - room, dtype=torch.int64))
        return received[:length]

    def barrier(self, name: str, timeout: float, on_wait: Callable[[str], None] | None = None) -> None:
        self._barrier.wait(name, timeout, on_wait)

    def report_progress(self, done: int, total: int) -> None:
        self._barrier.report_progress(done, total)

    def watch(self, callbacks: Callbacks) -> None:
        self._liveness = Liveness(self._topology, self._store, callbacks, progress=self._progress)
        self._liveness.start()

    def expect_progress(self, within: float) -> None:
        if self._liveness:
            self._liveness.expect_progress(within)

    def suspect(self) -> Suspect | None:
        return self._liveness.suspect() if self._liveness else None

    def rank_ages(self) -> dict[int, float]:
        return self._liveness.ages() if self._liveness else {}

    def fail(self, code: int, sentence: str) -> None:
        if self._liveness:
            self._liveness.fail(code, sentence)

    def leave(self) -> None:
        if self._liveness:
            self._liveness.close()

    def close(self) -> None:
        self.leave()
        dist.destroy_process_group()

    def _start(self, collective: Callable[[], dist.Work | None], tensor: Tensor) -> Callable[[], Tensor]:
        """Begin a collective; what is returned waits for it and hands out what it fills."""
        self._progress.enter()
        work = self._explained(collective)
        assert work is not None, "every process of the group takes part"

        def finish() -> Tensor:
            self._explained(work.wait)
            self._progress.leave()
            return tensor

        return finish

    def _explained(self, act: Callable[[], Result]) -> Result:
        """Act; where that fails since another rank has ended, LostRankError says which."""
        try:
            return act()
        except RuntimeError as error:
            sentence = self._liveness.end_within(EXPLANATION_SECONDS) if self._liveness else None
            if sentence is None:
                raise
            raise LostRankError(sentence) from error

    def _broadcast(self, tensor: Tensor) -> list[int]:
        self._progress.mark = self._marker  # not before: graphs are captured until the first plan
        with self._progress:
            self._explained(lambda: dist.broadcast(tensor, src=0))
        values: list[int] = tensor.tolist()
        return values


def _sum_in_order(parts_W: Tensor) -> Tensor:
    """The sum of all ranks' tensors, one rank after the other, in float32 where their type is narrower."""
    narrow = parts_W.dtype in (torch.bfloat16, torch.float16)
    total = parts_W[0].to(torch.float32 if narrow else parts_W.dtype, copy=True)
    for part in parts_W[1:]:
        total += part
    return total.to(parts_W.dtype)
