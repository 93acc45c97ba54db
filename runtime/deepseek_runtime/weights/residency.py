"""Whether FP8 blocks stay FP8 in memory or become the compute type when they are loaded. Pure arithmetic on numbers.

FP8 halves the memory, and the bytes of each token where kernels take it as it is. Elsewhere it is decoded again at each
use, which enough memory makes unnecessary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from deepseek_runtime.sizing import GIB, Layout, ModelShape, layout_problem, weight_bytes, with_even_redundancy
from deepseek_runtime.weights.index import CheckpointError

Wanted = Literal["auto", "fp8", "compute"]
MARGIN = 1.1
"""Memory that loading may take, as a multiple of the weights."""
FIRST_FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What decides about FP8 on a device: whether it multiplies FP8, and whether that is the fnuz kind."""

    name: str
    multiplies_fp8: bool = False
    fnuz: bool = False

    @classmethod
    def nvidia(cls, capability: tuple[int, int]) -> Hardware:
        """A CUDA device of a compute capability."""
        name = f"a GPU of CUDA capability {capability[0]}.{capability[1]}"
        return cls(name, multiplies_fp8=capability >= FIRST_FP8_CAPABILITY)

    @classmethod
    def amd(cls, architecture: str) -> Hardware:
        """A ROCm device of an architecture such as `gfx942:sramecc+:xnack-`."""
        name = architecture.partition(":")[0]
        fnuz = name.startswith("gfx94")
        return cls(f"a GPU of architecture {name}", multiplies_fp8=fnuz or name == "gfx950", fnuz=fnuz)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One rank's numbers, in bytes: weights with blocks kept and with them in the compute type, and the memory.

    `cache` is the least that a cache needs, `free` the least that any rank has. `decodes_fp8` tells that kernels read
    FP8 as fast as dense weights. `shape` and `layout` are the model's and its group's.
    """

    kept: int
    dense: int
    cache: int
    free: int
    compute_type: str
    hardware: Hardware
    shape: ModelShape
    layout: Layout
    decodes_fp8: bool = False

    def needs(self, weights: int) -> int:
        """Memory for weights of that size, for loading them, and for the least cache."""
        return int(weights * MARGIN) + self.cache


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and the sentence that says so and why."""

    keeps_fp8: bool
    sentence: str


def choose(wanted: Wanted, now: Situation) -> Choice:
    """Decide for a rank; CheckpointError where weights and the least cache do not fit into the memory that is free."""
    choice = _choose(wanted, now)
    weights = now.kept if choice.keeps_fp8 else now.dense
    if now.needs(weights) > now.free:
        raise CheckpointError(
            f"weights of {_gib(weights)} a rank, 10 % more to load them and a cache of {_gib(now.cache)} "
            f"do not fit into {_gib(now.free)} of free memory: {_way_out(now, weights)}"
        )
    return choice


def _way_out(now: Situation, weights: int) -> str:
    """What to do: FP8 where that fits, the next number of ranks that fits, or else another machine."""
    keep = "keep them in FP8 or " if weights > now.kept and now.needs(now.kept) <= now.free else ""
    ranks = _ranks_that_fit(now, weights)
    return f"{keep}use {ranks} ranks" if ranks else f"{keep}free memory: no number of ranks like this one fits"


def _ranks_that_fit(now: Situation, weights: int) -> int | None:
    """The next larger group whose ranks have room: each one's weights shrink as the planner's do."""
    here = weight_bytes(now.shape, now.layout)
    for ranks in range(now.layout.ranks + 1, now.shape.experts + now.layout.redundant_experts + 1):
        layout = with_even_redundancy(now.shape, replace(now.layout, nodes=1, per_node=ranks))
        share = weight_bytes(now.shape, layout) / here
        if layout_problem(now.shape, layout) is None and now.needs(int(weights * share)) <= now.free:
            return ranks
    return None


def _choose(wanted: Wanted, now: Situation) -> Choice:
    if now.kept == now.dense:
        return _widen(now, "the checkpoint has no FP8 to keep")
    if wanted == "compute":
        return _widen(now, "as --weights compute says")
    if why := "as --weights fp8 says" if wanted == "fp8" else _reason_to_keep(now):
        return _keep(now, why)
    wide = f"{_gib(now.dense)} of {now.compute_type}, 10 % more and a cache of {_gib(now.cache)}"
    if now.needs(now.dense) > now.free:
        return _keep(now, f"{wide} do not fit into the free {_gib(now.free)}")
    return _widen(now, f"{now.hardware.name} does not multiply FP8, and {wide} fit into the free {_gib(now.free)}")


def _reason_to_keep(now: Situation) -> str | None:
    if now.hardware.multiplies_fp8:
        return f"{now.hardware.name} multiplies FP8"
    if now.decodes_fp8:
        return f"the kernels for {now.hardware.name} decode FP8 while they multiply"
    return None


def _keep(now: Situation, why: str) -> Choice:
    return Choice(True, f"weights stay in FP8, {_gib(now.kept)} a rank: {why}")


def _widen(now: Situation, why: str) -> Choice:
    return Choice(False, f"weights become {now.compute_type}, {_gib(now.dense)} a rank: {why}")


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
