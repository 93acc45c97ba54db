"""Moves experts between ranks so that each has as much to do as the others, while requests wait for the next step.

All ranks sum how often each expert was chosen, compute the same placement from it, and exchange the bytes of what
moves, layer after layer: values, FP8 scales, whatever an expert is made of. They come to lie where others lay, so that
whoever holds the memory, such as a captured graph, goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import SwiGLU
from deepseek_runtime.model import placement
from deepseek_runtime.model.moe import MoE

STAGING_BYTES = 2**26
"""Bound of what a rank holds twice during a move, once on its way out and once on its way in."""
THRESHOLD = 1.1
"""A layer is left alone while its busiest rank does less than this times the mean."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Work of the busiest rank over the mean, for the choices since the last time, as experts lay and as they lie now;
    the layers' mean. `moved` experts came to a slot that held another, over all layers and ranks."""

    before: float
    after: float
    moved: int


@dataclass(frozen=True, slots=True)
class Move:
    """An expert's way from a slot to another, both counted over all ranks."""

    source: int
    target: int


def rebalance(layers: Sequence[MoE], group: Group, threshold: float = THRESHOLD) -> Balance:
    """Even out the ranks' work in the layers whose imbalance is above the threshold. All ranks call it between steps.

    What was counted is forgotten, so that the next time sees the traffic since this one.
    """
    if group.world_size == 1 or not layers:
        return Balance(1.0, 1.0, 0)
    loads = group.all_reduce_sum(torch.stack([layer.table.chosen_E for layer in layers])).tolist()
    before, after, moved = 0.0, 0.0, 0
    for layer, load in zip(layers, loads, strict=True):
        old = layer.table.placement
        new = _better(load, old, _cluster(layer, group), threshold)
        before += placement.imbalance(load, old, group.world_size) / len(layers)
        after += placement.imbalance(load, new, group.world_size) / len(layers)
        moves = plan_moves(old, new, len(old) // group.world_size)
        if moves:
            move(layer.experts, moves, group)
            layer.table.move(new)
        layer.table.chosen_E.zero_()
        moved += len(moves)
    return Balance(before, after, moved)


def plan_moves(old: Sequence[int], new: Sequence[int], per_rank: int) -> list[Move]:
    """Where each slot that changes gets its expert: from its own rank where that has one, else from the copies in turn.

    In the order of source ranks, then of target ranks: that of the messages.
    """
    copies: dict[int, list[int]] = {}
    for slot, expert in enumerate(old):
        copies.setdefault(expert, []).append(slot)
    moves = []
    for slot, expert in enumerate(new):
        if old[slot] != expert:
            near = [source for source in copies[expert] if source // per_rank == slot // per_rank]
            sources = near or copies[expert]
            moves.append(Move(sources[slot % len(sources)], slot))
    return sorted(moves, key=lambda move: (move.source // per_rank, move.target // per_rank, move.target))


def move(experts: SwiGLU, moves: Sequence[Move], group: Group, staging_bytes: int = STAGING_BYTES) -> None:
    """Carry out the moves of one layer on every rank. Old bytes are sent before new ones overwrite them."""
    per_rank = experts.gate.shape[0]
    leaving = [move for move in moves if move.source // per_rank == group.rank]
    coming = [move for move in moves if move.target // per_rank == group.rank]
    ranks = range(group.world_size)
    sent = [sum(move.target // per_rank == rank for move in leaving) for rank in ranks]
    received = [sum(move.source // per_rank == rank for move in coming) for rank in ranks]
    busiest = max(
        _busiest([move.source // per_rank for move in moves]), _busiest([m.target // per_rank for m in moves])
    )
    sources = torch.tensor([move.source % per_rank for move in leaving], dtype=torch.int64, device=group.device)
    targets = torch.tensor([move.target % per_rank for move in coming], dtype=torch.int64, device=group.device)
    for stack_SB in _stacks(experts):
        # Every rank cuts the experts into the same bands, and a band leaves as a whole before it is overwritten.
        for band_SB in torch.split(stack_SB, max(staging_bytes // busiest, 1), dim=1):
            band_SB[targets] = group.all_to_all(band_SB[sources], sent, received)


def _better(load: list[int], old: list[int], cluster: placement.Cluster, threshold: float) -> list[int]:
    """A better placement for the load, or the old one where that is good enough or as good."""
    present = placement.imbalance(load, old, cluster.ranks)
    if present <= threshold:
        return old
    new = placement.settle(placement.place(load, len(old), cluster), old, cluster)
    return new if placement.imbalance(load, new, cluster.ranks) < present else old


def _cluster(layer: MoE, group: Group) -> placement.Cluster:
    return placement.Cluster(group.world_size, group.nodes, layer.router.groups)


def _busiest(ranks: list[int]) -> int:
    return max(map(ranks.count, set(ranks)))


def _stacks(experts: SwiGLU) -> Iterator[Tensor]:
    """The bytes [slots, bytes of one expert] of everything that experts are made of."""
    for weight in (experts.gate, experts.up, experts.down):
        for tensor in _tensors(weight):
            yield tensor.view(len(tensor), -1).view(torch.uint8)


def _tensors(weight: Weight) -> tuple[Tensor, ...]:
    return (weight,) if isinstance(weight, Tensor) else (weight.values, weight.scale)
