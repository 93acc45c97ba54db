"""Applies the placements to one rank of a group: which heads and experts, hence which slices, are its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepseek_runtime import sizing
from deepseek_runtime.model import placement
from deepseek_runtime.model.config import ModelConfig
from deepseek_runtime.model.sharding import Parameter, Placement

Attention = Literal["tensor", "data"]


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
    """One rank's part: a contiguous block of heads, and a block of the slots that hold experts.

    Where the heads do not divide over the ranks, every rank computes them all and no sum is needed. With data attention
    too: then a rank has requests of its own, and its tokens travel to the experts.
    """

    config: ModelConfig
    heads: range
    experts: tuple[int, ...]
    """The expert in each of this rank's slots when weights are loaded; one may be there more than once."""
    slots: range
    """This rank's slots among those of all ranks."""
    redundant_experts: int = 0
    exchanges_tokens: bool = False
    """Whether tokens go to the ranks of their experts, rather than being on every rank."""

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        rank: int,
        world_size: int,
        *,
        attention: Attention = "tensor",
        redundant_experts: int = 0,
    ) -> Shard:
        """The part of `rank` among `world_size`; ParallelError where experts and their copies do not divide."""
        _check_experts(config.router.experts, redundant_experts, world_size)
        whole = attention == "data" or config.num_heads % world_size != 0
        heads = range(config.num_heads) if whole else _block(config.num_heads, rank, world_size)
        slots = _block(config.router.experts + redundant_experts, rank, world_size)
        placed = placement.initial(config.router.experts, redundant_experts)
        return cls(
            config=config,
            heads=heads,
            experts=tuple(placed[slots.start : slots.stop]),
            slots=slots,
            redundant_experts=redundant_experts,
            exchanges_tokens=attention == "data" and world_size > 1,
        )

    def positions(self, expert: int) -> list[int]:
        """Where in this rank's stack an expert lies; nowhere, once, or more often."""
        return [position for position, held in enumerate(self.experts) if held == expert]

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


def _check_experts(experts: int, redundant: int, ranks: int) -> None:
    """Raise ParallelError where the slots do not divide over the ranks."""
    if redundant < 0:
        raise ParallelError(f"{redundant} redundant experts: the number must be 0 or more")
    if (experts + redundant) % ranks == 0:
        return
    if not redundant:
        raise ParallelError(
            f"{experts} experts do not divide over {ranks} ranks; "
            f"the next valid number of ranks is {sizing.next_divisor(experts, ranks)}"
        )
    raise ParallelError(
        f"{experts} + {redundant} redundant experts do not divide over {ranks} ranks; "
        f"the next valid number of redundant experts is {sizing.next_redundant(experts, redundant, ranks)}"
    )
