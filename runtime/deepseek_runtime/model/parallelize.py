"""Applies the placements to one rank of a group: which heads and experts, hence which slices, are its own."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_runtime import sizing
from deepseek_runtime.model.config import ModelConfig
from deepseek_runtime.model.sharding import Parameter, Placement


class ParallelError(ValueError):
    """A model that does not divide over the ranks; the message gives the next size that works."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows, and for matrices columns, of a checkpoint tensor."""

    rows: range
    columns: range | None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows),) if self.columns is None else (len(self.rows), len(self.columns))


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part: contiguous blocks of heads and of experts.

    Where the heads do not divide over the ranks, every rank computes them all and no sum is needed.
    """

    config: ModelConfig
    heads: range
    experts: range

    @classmethod
    def of(cls, config: ModelConfig, rank: int, world_size: int) -> Shard:
        """The part of `rank` among `world_size`; ParallelError where the experts do not divide."""
        experts = config.router.experts
        if experts % world_size:
            raise ParallelError(
                f"{experts} experts do not divide over {world_size} ranks; "
                f"the next valid number of ranks is {sizing.next_divisor(experts, world_size)}"
            )
        whole = config.num_heads % world_size != 0
        heads = range(config.num_heads) if whole else _block(config.num_heads, rank, world_size)
        return cls(config, heads, _block(experts, rank, world_size))

    @property
    def splits_heads(self) -> bool:
        """Whether attention outputs are partial sums."""
        return len(self.heads) < self.config.num_heads

    def slice_of(self, parameter: Parameter) -> Slice | None:
        """What this rank holds of a tensor; None where it is another rank's expert."""
        size, *rest = parameter.shape
        rows, columns = range(size), range(rest[0]) if rest else None
        if parameter.placement is Placement.EXPERT and parameter.expert not in self.experts:
            return None
        if parameter.placement is Placement.HEAD_ROWS:
            rows = self._by_heads(size)
        if parameter.placement is Placement.HEAD_COLUMNS:
            columns = self._by_heads(rest[0])
        return Slice(rows, columns)

    def _by_heads(self, size: int) -> range:
        width = size // self.config.num_heads
        return range(self.heads.start * width, self.heads.stop * width)


def _block(total: int, rank: int, world_size: int) -> range:
    size = total // world_size
    return range(rank * size, (rank + 1) * size)
