"""The arithmetic of placing experts: nothing lost, ranks equal, groups on one node, and as few moves as may be."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_runtime.model.placement import (
    Cluster,
    imbalance,
    initial,
    pack,
    place,
    rank_loads,
    replicate,
    settle,
)
from deepseek_runtime.model.rebalance import plan_moves
from deepseek_runtime.sizing import next_redundant

Case = tuple[list[int], int, Cluster]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Loads, slots that divide over the ranks, and a cluster, which the experts' groups may or may not fit."""
    nodes, per_node = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ranks, groups = nodes * per_node, draw(st.integers(1, 6))
    experts = groups * draw(st.integers(1, 6))
    redundant = next_redundant(experts, draw(st.integers(0, 6)), ranks)
    loads = draw(st.lists(st.integers(0, 1000), min_size=experts, max_size=experts))
    return loads, experts + redundant, Cluster(ranks, nodes, groups)


@settings(deadline=None)
@given(cases())
def test_every_expert_has_a_slot_and_every_slot_an_expert(case: Case) -> None:
    loads, slots, cluster = case
    placed = place(loads, slots, cluster)
    assert len(placed) == slots
    assert set(placed) == set(range(len(loads)))


@settings(deadline=None)
@given(cases())
def test_the_work_of_all_ranks_is_that_of_all_experts(case: Case) -> None:
    loads, slots, cluster = case
    assert sum(rank_loads(loads, place(loads, slots, cluster), cluster.ranks)) == pytest.approx(sum(loads))


@settings(deadline=None)
@given(cases())
def test_groups_stay_on_one_node_where_they_divide(case: Case) -> None:
    loads, slots, cluster = case
    if not cluster.can_nest(len(loads), slots):
        return
    size, per_node = len(loads) // cluster.groups, slots // cluster.nodes
    homes: dict[int, set[int]] = {}
    for slot, expert in enumerate(place(loads, slots, cluster)):
        homes.setdefault(expert // size, set()).add(slot // per_node)
    assert all(len(nodes) == 1 for nodes in homes.values())


@settings(deadline=None)
@given(cases())
def test_settling_keeps_each_ranks_company_and_what_lies_right(case: Case) -> None:
    loads, slots, cluster = case
    old, wanted = initial(len(loads), slots - len(loads)), place(loads, slots, cluster)
    settled = settle(wanted, old, cluster)
    size = slots // cluster.ranks

    def companies(placement: list[int]) -> list[list[int]]:
        return sorted(sorted(placement[start : start + size]) for start in range(0, slots, size))

    assert companies(settled) == companies(wanted)
    assert imbalance(loads, settled, cluster.ranks) == pytest.approx(imbalance(loads, wanted, cluster.ranks))
    assert settle(settled, settled, cluster) == settled


@settings(deadline=None)
@given(cases())
def test_moves_bring_every_expert_to_its_slot_from_where_it_was(case: Case) -> None:
    loads, slots, cluster = case
    per_rank = slots // cluster.ranks
    old = initial(len(loads), slots - len(loads))
    new = settle(place(loads, slots, cluster), old, cluster)
    moves = plan_moves(old, new, per_rank)
    after = list(old)
    for move in moves:
        assert old[move.source] == new[move.target] != old[move.target]
        after[move.target] = old[move.source]
    assert after == new
    ways = [(move.source // per_rank, move.target // per_rank) for move in moves]
    assert all(first <= second for first, second in pairwise(ways))


def test_the_busiest_expert_per_copy_gets_the_next_copy() -> None:
    assert replicate([10, 60, 25], 6) == [1, 3, 2]
    assert replicate([0, 0], 3) == [2, 1]


def test_heavy_items_go_first_and_copies_go_apart() -> None:
    assert pack([0, 1, 2, 3], [1, 8, 4, 3], 2) == [[1, 0], [2, 3]]
    assert pack([0, 0, 1, 2], [5, 5, 1, 1], 2) == [[0, 1], [0, 2]]


def test_skewed_load_becomes_even() -> None:
    loads = [100] * 4 + [5] * 12
    cluster = Cluster(4)
    assert imbalance(loads, initial(16, 0), 4) > 3
    assert imbalance(loads, place(loads, 20, cluster), 4) < 1.05


def test_the_real_model_on_two_nodes_keeps_groups_together_and_halves_the_peak() -> None:
    loads = [1 + (expert * 7919 % 97) ** 2 for expert in range(256)]
    cluster = Cluster(ranks=16, nodes=2, groups=8)
    placed = place(loads, 288, cluster)
    assert {placed[slot] // 32 for slot in range(144)}.isdisjoint({placed[slot] // 32 for slot in range(144, 288)})
    assert imbalance(loads, placed, 16) < 1.05


@pytest.mark.parametrize(
    ("experts", "wanted", "ranks", "next_valid"), [(16, 4, 3, 5), (256, 0, 72, 32), (256, 32, 8, 32)]
)
def test_the_next_number_of_redundant_experts(experts: int, wanted: int, ranks: int, next_valid: int) -> None:
    assert next_redundant(experts, wanted, ranks) == next_valid
