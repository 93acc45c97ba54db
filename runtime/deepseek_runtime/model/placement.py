"""Which expert every physical slot holds: more copies of the busy ones, and ranks with equal work. Pure arithmetic.

E experts and R redundant copies fill E + R slots, the same number on each rank in the order of ranks. All ranks compute
the same placement from the same loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heapreplace

Loads = Sequence[float]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The ranks that share the experts. Experts come in `groups` of neighbours, which a token visits few of; ranks in
    `nodes` of neighbours, between which the wires are slower."""

    ranks: int
    nodes: int = 1
    groups: int = 1

    def can_nest(self, experts: int, slots: int) -> bool:
        """Whether groups can live on nodes: everything divides, and there is more than one node to choose."""
        by_nodes = self.groups % self.nodes == self.ranks % self.nodes == slots % self.nodes == 0
        return self.nodes > 1 and by_nodes and experts % self.groups == 0


def initial(experts: int, redundant: int) -> list[int]:
    """The placement before any load is known: experts in their order, then the redundant copies from the first on."""
    return [slot % experts for slot in range(experts + redundant)]


def place(loads: Loads, slots: int, cluster: Cluster) -> list[int]:
    """The expert of each slot, balanced for these loads of each expert; `slots` divide over the ranks.

    Where groups of experts divide over nodes each group stays on one node, so that a token's traffic does too.
    """
    if not cluster.can_nest(len(loads), slots):
        return _flat(_balance(list(range(len(loads))), loads, slots, cluster.ranks))
    size = len(loads) // cluster.groups
    group_loads = [sum(loads[g * size : (g + 1) * size]) for g in range(cluster.groups)]
    packs: list[list[int]] = []
    for groups in pack(list(range(cluster.groups)), group_loads, cluster.nodes):
        experts = [expert for g in groups for expert in range(g * size, (g + 1) * size)]
        packs += _balance(experts, loads, slots // cluster.nodes, cluster.ranks // cluster.nodes)
    return _flat(packs)


def replicate(loads: Loads, slots: int) -> list[int]:
    """How many copies of each item fill the slots: one each, then always one more of the busiest per copy."""
    copies = [1] * len(loads)
    busiest = [(-load, item) for item, load in enumerate(loads)]
    heapify(busiest)
    for _ in range(slots - len(loads)):
        item = busiest[0][1]
        copies[item] += 1
        heapreplace(busiest, (-loads[item] / copies[item], item))
    return copies


def pack(items: Sequence[int], loads: Loads, bins: int) -> list[list[int]]:
    """The items in bins of equal size, heaviest first, each to the lightest bin with room.

    A bin that holds the same item already is the last resort: two copies in one place share nothing.
    """
    room = len(items) // bins
    packs: list[list[int]] = [[] for _ in range(bins)]
    totals = [0.0] * bins
    for item, load in sorted(zip(items, loads, strict=True), key=lambda pair: (-pair[1], pair[0])):
        open_bins = [b for b in range(bins) if len(packs[b]) < room]
        lightest = min(open_bins, key=lambda b: (item in packs[b], totals[b], b))
        packs[lightest].append(item)
        totals[lightest] += load
    return packs


def settle(wanted: Sequence[int], current: Sequence[int], cluster: Cluster) -> list[int]:
    """The same placement with ranks of a node renamed and slots of a rank reordered, so that few experts move."""
    size = len(wanted) // cluster.ranks
    packs = _packs(wanted, size)
    held = _packs(current, size)
    per_node = cluster.ranks // cluster.nodes if cluster.ranks % cluster.nodes == 0 else cluster.ranks
    settled: list[list[int]] = []
    for first in range(0, cluster.ranks, per_node):
        free = packs[first : first + per_node]
        for rank in range(first, first + per_node):
            nearest = max(free, key=partial(_common, held[rank]))
            free.remove(nearest)
            settled.append(_keep_slots(nearest, held[rank]))
    return _flat(settled)


def rank_loads(loads: Loads, placement: Sequence[int], ranks: int) -> list[float]:
    """Work of each rank where an expert's load is shared evenly by its copies."""
    copies = [0] * len(loads)
    for expert in placement:
        copies[expert] += 1
    shares = [loads[expert] / copies[expert] for expert in placement]
    return [sum(part) for part in _slices(shares, len(placement) // ranks)]


def imbalance(loads: Loads, placement: Sequence[int], ranks: int) -> float:
    """Work of the busiest rank over the mean: 1 is perfect. Without any load, 1."""
    work = rank_loads(loads, placement, ranks)
    return max(work) * ranks / total if (total := sum(work)) else 1.0


def _balance(experts: list[int], loads: Loads, slots: int, ranks: int) -> list[list[int]]:
    """Replicate and pack some of the experts on some of the ranks."""
    copies = replicate([loads[expert] for expert in experts], slots)
    items = [expert for expert, count in zip(experts, copies, strict=True) for _ in range(count)]
    shares = [loads[expert] / count for expert, count in zip(experts, copies, strict=True) for _ in range(count)]
    return pack(items, shares, ranks)


def _common(one: list[int], other: list[int]) -> int:
    return len(set(one) & set(other))


def _keep_slots(wanted: list[int], held: list[int]) -> list[int]:
    """The wanted experts, those that are held already in the slots where they are."""
    coming = list(wanted)
    kept: list[int | None] = []
    for expert in held:
        stays = expert in coming
        kept.append(expert if stays else None)
        if stays:
            coming.remove(expert)
    return [coming.pop(0) if expert is None else expert for expert in kept]


def _packs(placement: Sequence[int], size: int) -> list[list[int]]:
    return [list(placement[start : start + size]) for start in range(0, len(placement), size)]


def _slices(values: Loads, size: int) -> list[Loads]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _flat(packs: list[list[int]]) -> list[int]:
    return [expert for pack in packs for expert in pack]
