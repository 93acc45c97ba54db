"""The planner's arithmetic, against the published totals and the table of memory and token capacity."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_runtime.sizing import (
    ACCELERATORS,
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3_671B,
    GIB,
    Attention,
    Layout,
    accelerator,
    advise,
    estimate,
    known_shape,
    layout_problem,
    next_divisor,
    smallest_nodes,
    weight_bytes,
)

V3 = DEEPSEEK_V3_671B


def test_published_totals_are_reproduced() -> None:
    assert V3.checkpoint_bytes / 1e9 == pytest.approx(688.6, abs=0.1)
    assert V3.expert_bytes / 1e6 == pytest.approx(44.05, abs=0.01)
    assert V3.kv_bytes_per_token == 71_424
    assert replace(V3, mtp_layers=0).kv_bytes_per_token == 70_272
    main = replace(V3, mtp_layers=0)
    assert main.checkpoint_bytes / 1e9 == pytest.approx(673.2, abs=0.1)
    assert main.dequantised().checkpoint_bytes / 1e9 == pytest.approx(1342, abs=1)
    assert DEEPSEEK_V2_LITE.checkpoint_bytes / 2e9 == pytest.approx(15.7, abs=0.1), "V2-Lite has 15.7 B parameters"


@pytest.mark.parametrize(
    ("product", "nodes", "attention", "weights_gib", "million_tokens"),
    [
        ("H200", 1, "tensor", 80.7, 0.64),
        ("H200", 1, "data", 95.6, 3.3),
        ("H100", 2, "tensor", 40.9, 0.40),
        ("H100", 2, "data", 56.9, 2.5),
        ("H100", 4, "data", 37.5, 14.3),
        ("MI300X", 1, "tensor", 80.7, 1.35),
        ("MI300X", 1, "data", 95.6, 9.0),
        ("MI325X", 1, "tensor", 80.7, 2.2),
        ("B200", 1, "tensor", 80.7, 1.2),
        ("B200", 1, "data", 95.6, 7.6),
    ],
)
def test_weights_and_tokens_of_known_systems(
    product: str, nodes: int, attention: Attention, weights_gib: float, million_tokens: float
) -> None:
    found = estimate(V3, Layout(nodes, 8, attention), ACCELERATORS[product].memory_bytes)
    assert found.fits
    assert found.weight_bytes / GIB == pytest.approx(weights_gib, rel=0.01)
    assert found.kv_tokens / 1e6 == pytest.approx(million_tokens, rel=0.03)


def test_bf16_needs_twice_the_nodes() -> None:
    bf16, h200 = V3.dequantised(), ACCELERATORS["H200"].memory_bytes
    assert not estimate(bf16, Layout(1, 8), h200).fits
    assert estimate(bf16, Layout(2, 8), h200).kv_tokens / 1e6 == pytest.approx(0.63, rel=0.03)


@pytest.mark.parametrize(
    ("nodes", "gibibytes", "nearest"),
    [(1, 80, "2 nodes × 8 (tensor"), (2, 48, "4 nodes × 8 (tensor"), (4, 24, "16 nodes × 8 (tensor")],
    ids=["8 × 80 GB", "16 × 48 GB", "32 × 24 GB"],
)
def test_a_layout_that_cannot_fit_is_refused_with_numbers_and_the_nearest_that_fits(
    nodes: int, gibibytes: int, nearest: str
) -> None:
    """Case 17: refused by shapes alone, so before a weight is downloaded or read."""
    layout, memory = Layout(nodes, 8, split_dense=False), gibibytes * GIB
    refused = estimate(V3, layout, memory)
    assert not refused.fits
    assert refused.kv_tokens == 0
    assert refused.needed > refused.available
    sentence, _, other = advise(V3, layout, memory).partition(" Nearest: ")
    assert f"needs {refused.needed / GIB:.1f} GiB ({refused.weight_bytes / GIB:.1f} GiB of them weights)" in sentence
    assert f"has {refused.available / GIB:.1f} GiB usable" in sentence
    assert other.startswith(nearest)


@pytest.mark.parametrize(
    ("gigabytes", "attention", "million_tokens"),
    [(141, "tensor", 0.51), (141, "data", 2.3), (206, "tensor", 1.35), (206, "data", 9.0)],
    ids=["8 × 141 GB", "8 × 141 GB with data attention", "8 × 192 GiB", "8 × 192 GiB with data attention"],
)
def test_a_layout_that_fits_is_accepted_with_its_tokens(
    gigabytes: int, attention: Attention, million_tokens: float
) -> None:
    """Case 17. A real H200 reports 10 GB more than the seller's 141; its 0.64 M and 3.3 M tokens are tested above."""
    found = estimate(V3, Layout(1, 8, attention), gigabytes * 10**9)
    assert found.fits
    assert found.kv_tokens / 1e6 == pytest.approx(million_tokens, rel=0.03)


def test_smallest_nodes_finds_the_fewest() -> None:
    found = smallest_nodes(V3, Layout(1, 8), ACCELERATORS["H100"].memory_bytes)
    assert found is not None
    assert found.layout.nodes == 2
    assert smallest_nodes(V3, Layout(1, 8), GIB) is None


def test_layouts_that_do_not_divide_name_the_next_valid_size() -> None:
    """Case 13: a shard that is not aligned to the FP8 grid is refused by the plan, with its tensor."""
    assert (
        layout_problem(V3, Layout(9, 8, "data"))
        == "256 experts do not divide over 72 ranks; the next valid size is 128"
    )
    assert layout_problem(V3, Layout(9, 8, "data", redundant_experts=32)) is None
    grid = layout_problem(V3, Layout(4, 8))
    assert grid is not None
    assert "mlp.shared_experts.gate_proj has 2048 rows: 64 for each of 32 ranks" in grid
    assert layout_problem(V3, Layout(4, 8, split_dense=False)) is None
    few_heads = replace(V3, heads=20)
    assert layout_problem(few_heads, Layout(1, 8)) == (
        "20 attention heads do not divide over 8 ranks; the next valid size is 10, or choose data attention"
    )


def test_what_is_not_split_is_counted_on_every_rank() -> None:
    split, whole = Layout(1, 8), Layout(1, 8, split_dense=False)
    assert 6.0 < (weight_bytes(V3, whole) - weight_bytes(V3, split)) / GIB < 6.2


@pytest.mark.parametrize(
    ("product", "nodes", "weights_gib", "million_tokens"),
    [("H200", 1, 86.9, 0.545), ("H100", 2, 47.6, 0.296), ("MI300X", 1, 86.9, 1.258)],
)
def test_the_native_engine_fits_where_the_samples_put_it(
    product: str, nodes: int, weights_gib: float, million_tokens: float
) -> None:
    found = estimate(V3, Layout(nodes, 8, split_dense=False), ACCELERATORS[product].memory_bytes)
    assert found.fits
    assert found.weight_bytes / GIB == pytest.approx(weights_gib, abs=0.05)
    assert found.kv_tokens / 1e6 == pytest.approx(million_tokens, abs=0.001)


def test_hub_names_and_products_are_found_in_any_case() -> None:
    assert known_shape("deepseek-ai/deepseek-v3-0324") is V3
    assert known_shape("someone/else") is None
    assert accelerator("mi300x") is ACCELERATORS["MI300X"]
    assert accelerator("abacus") is None


@settings(deadline=None)
@given(ranks=st.sampled_from([1, 2, 4, 8, 16]), attention=st.sampled_from(["tensor", "data"]))
def test_ranks_together_hold_at_least_the_checkpoint_less_the_copies(ranks: int, attention: Attention) -> None:
    layout = Layout(1, ranks, attention)
    whole = weight_bytes(V3, Layout(1, 1))
    assert whole <= weight_bytes(V3, layout) * ranks
    assert weight_bytes(V3, layout) <= whole


@settings(deadline=None)
@given(total=st.integers(1, 2000), ranks=st.integers(1, 2000))
def test_the_next_divisor_divides_and_none_lies_between(total: int, ranks: int) -> None:
    found = next_divisor(total, ranks)
    assert total % found == 0
    assert all(total % n for n in range(ranks, found))
