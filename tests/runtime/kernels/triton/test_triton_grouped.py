"""Tiles of assignments, and experts computed through them, against the torch twin and float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_runtime.kernels.fp8 import Fp8Weight
from deepseek_runtime.kernels.interface import SwiGLU
from deepseek_runtime.kernels.triton import grouped
from deepseek_runtime.kernels.triton.grouping import (
    Tiles,
    group_by_expert,
    group_by_sorting,
    most_tiles,
    one_group,
    usual_rows,
)
from deepseek_runtime.kernels.triton.hardware import Fp8Format, Hardware

PLAIN = Hardware(None, 1, 1)


def check_tiles(tiles: Tiles, flat: list[int], rows: int) -> None:
    """Every assignment that has an expert is in one tile of it, in its own order."""
    seen = []
    for expert, first, count in zip(tiles.expert.tolist(), tiles.first.tolist(), tiles.count.tolist(), strict=True):
        assert count <= rows
        members = tiles.order_A[first : first + count].tolist()
        assert all(flat[member] == expert for member in members)
        seen += members
    assert seen == sorted((place for place, slot in enumerate(flat) if slot >= 0), key=lambda place: flat[place])
    assert len(tiles) == most_tiles(len(flat), 7, rows)
    assert tiles.used is not None
    assert tiles.used.tolist() == [len(seen)]


@settings(deadline=None, max_examples=60)
@given(
    slots=st.lists(st.lists(st.integers(-1, 6), min_size=3, max_size=3), min_size=1, max_size=20),
    rows=st.sampled_from([1, 2, 16]),
)
def test_every_assignment_is_in_one_tile_of_its_expert(slots: list[list[int]], rows: int) -> None:
    flat = [slot for row in slots for slot in row]
    table = torch.tensor(slots, device="cuda" if torch.cuda.is_available() else "cpu")
    check_tiles(group_by_expert(table, 7, rows), flat, rows)
    check_tiles(group_by_sorting(table.flatten(), 7, rows), flat, rows)


def test_a_dense_layer_is_one_group() -> None:
    tiles = one_group(37, 16, torch.device("cpu"))
    assert tiles.first.tolist() == [0, 16, 32]
    assert tiles.count.tolist() == [16, 16, 5]


def test_tiles_suit_the_average_expert() -> None:
    assert [usual_rows(assignments, 256) for assignments in (8, 512, 8192, 65536)] == [16, 16, 32, 64]


def double(weight: torch.Tensor | Fp8Weight) -> torch.Tensor:
    return weight.dequantise(torch.float64) if isinstance(weight, Fp8Weight) else weight.double()


def by_definition(x, slots, weights, stack: SwiGLU) -> torch.Tensor:
    gate, up, down = map(double, (stack.gate, stack.up, stack.down))
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for t, row in enumerate(slots.tolist()):
        for k, e in enumerate(row):
            if e >= 0:
                h = torch.nn.functional.silu(gate[e] @ x[t].double()) * (up[e] @ x[t].double())
                out[t] += weights[t, k].double() * (down[e] @ h)
    return out


def relative(ours, exact) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("tokens", [1, 3, 21])
@pytest.mark.parametrize("kind", ["dense", "fp8", "sharded"])
def test_experts_equal_their_definition(noise, fp8_weight, tokens: int, kind: str) -> None:
    if kind == "dense":
        stack = SwiGLU(noise(5, 40, 36) * 0.2, noise(5, 40, 36) * 0.2, noise(5, 36, 40) * 0.2)
    else:
        cut = (3, 7) if kind == "sharded" else (0, 0)
        gate, up = (fp8_weight(5, 40, 36, offset=cut) for _ in range(2))
        stack = SwiGLU(gate, up, fp8_weight(5, 36, 40, offset=cut[::-1]))
    x, weights = noise(tokens, 36), noise(tokens, 3).abs()
    slots = torch.stack([torch.randperm(7, device=x.device)[:3] - 2 for _ in range(tokens)]).clamp(min=-1)
    exact = by_definition(x, slots, weights, stack)
    ours = grouped.experts(x, slots, weights, stack, PLAIN, batch_invariant=False)
    assert ours.dtype is torch.float32
    assert ((ours.double() - exact).norm() <= 1e-6 * exact.norm()).item()
    rounded = grouped.experts(x, slots, weights, stack, Hardware(Fp8Format(), 1, 1), batch_invariant=False)
    assert ((rounded.double() - exact).norm() <= 0.08 * exact.norm()).item()


def test_tokens_without_an_expert_here_add_nothing(noise) -> None:
    stack = SwiGLU(noise(2, 16, 16), noise(2, 16, 16), noise(2, 16, 16))
    slots = torch.tensor([[-1, -1], [0, -1]], device=stack.gate.device)
    out = grouped.experts(noise(2, 16), slots, noise(2, 2), stack, PLAIN, batch_invariant=False)
    assert not out[0].any()
    assert out[1].any()
    none = grouped.experts(noise(0, 16), slots[:0], noise(0, 2), stack, PLAIN, batch_invariant=False)
    assert none.shape == (0, 16)


def test_long_prompts_go_through_in_parts(noise, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = SwiGLU(noise(3, 16, 16), noise(3, 16, 16), noise(3, 16, 16))
    x, weights = noise(9, 16), noise(9, 2)
    slots = torch.arange(18, device=x.device).view(9, 2) % 3
    monkeypatch.setattr(grouped, "TOKENS_AT_ONCE", 4)
    ours = grouped.experts(x, slots, weights, stack, PLAIN, batch_invariant=False)
    assert relative(ours, by_definition(x, slots, weights, stack)) < 1e-6


def test_an_expert_sums_the_same_bits_in_every_batch(noise) -> None:
    stack = SwiGLU(noise(3, 16, 40), noise(3, 16, 40), noise(3, 40, 16))
    x, weights = noise(30, 40), noise(30, 2)
    slots = torch.arange(60, device=x.device).view(30, 2) % 3
    whole = grouped.experts(x, slots, weights, stack, PLAIN, batch_invariant=True)
    alone = grouped.experts(x[7:8], slots[7:8], weights[7:8], stack, PLAIN, batch_invariant=True)
    assert torch.equal(alone, whole[7:8])


def test_a_dense_layer_is_gated_in_one_kernel(noise, fp8_weight) -> None:
    weights = SwiGLU(fp8_weight(40, 36), fp8_weight(40, 36), fp8_weight(36, 40))
    x = noise(19, 36)
    gate, up = double(weights.gate) @ x.double().T, double(weights.up) @ x.double().T
    ours = grouped.swiglu(x, weights, PLAIN, batch_invariant=False)
    assert relative(ours, (torch.nn.functional.silu(gate) * up).T) < 1e-6
