"""FP8 stays FP8 where that is faster or memory demands it, and the sentence has the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from deepseek_runtime.sizing import ACCELERATORS, DEEPSEEK_V3_671B, GIB, Attention, Layout, weight_bytes
from deepseek_runtime.weights.index import CheckpointError
from deepseek_runtime.weights.machine import available_bytes, container_bytes
from deepseek_runtime.weights.residency import Hardware, Situation, Wanted, choose

CPU = Hardware("this CPU")
A100, H100, L40S = Hardware.nvidia((8, 0)), Hardware.nvidia((9, 0)), Hardware.nvidia((8, 9))
ROOMY = Situation(
    kept=10 * GIB,
    dense=20 * GIB,
    cache=GIB,
    free=80 * GIB,
    compute_type="bfloat16",
    hardware=A100,
    shape=DEEPSEEK_V3_671B,
    layout=Layout(nodes=1, per_node=8, split_dense=False),
    decodes_fp8=False,
)


def test_the_catalogue_agrees_about_which_gpus_multiply_fp8() -> None:
    assert not A100.multiplies_fp8
    assert ACCELERATORS["A100-80GB"].fp8 is A100.multiplies_fp8
    assert ACCELERATORS["H100"].fp8 is H100.multiplies_fp8
    assert ACCELERATORS["L40S"].fp8 is L40S.multiplies_fp8
    assert Hardware.nvidia((10, 0)).multiplies_fp8


@pytest.mark.parametrize(
    ("architecture", "multiplies", "fnuz"),
    [
        ("gfx942:sramecc+:xnack-", True, True),
        ("gfx941", True, True),
        ("gfx950:sramecc+:xnack-", True, False),
        ("gfx90a:sramecc+:xnack-", False, False),
        ("gfx1100", False, False),
    ],
)
def test_amd_gpus_are_known_by_their_architecture(architecture: str, multiplies: bool, fnuz: bool) -> None:
    hardware = Hardware.amd(architecture)
    assert (hardware.multiplies_fp8, hardware.fnuz) == (multiplies, fnuz)


@pytest.mark.parametrize("hardware", [H100, Hardware.amd("gfx942:sramecc+:xnack-"), Hardware.amd("gfx950")])
def test_hardware_with_fp8_keeps_it_however_much_memory_there_is(hardware: Hardware) -> None:
    choice = choose("auto", replace(ROOMY, hardware=hardware))
    assert choice.keeps_fp8
    assert f"10.00 GiB a rank: {hardware.name} multiplies FP8" in choice.sentence


def test_kernels_that_decode_fp8_keep_it() -> None:
    choice = choose("auto", replace(ROOMY, hardware=CPU, decodes_fp8=True))
    assert choice.keeps_fp8
    assert "the kernels for this CPU decode FP8" in choice.sentence


def test_elsewhere_memory_decides_to_the_byte() -> None:
    needed = 22 * GIB + GIB
    wide = choose("auto", replace(ROOMY, free=needed))
    assert not wide.keeps_fp8
    assert "become bfloat16, 20.00 GiB a rank" in wide.sentence
    assert "fit into the free 23.00 GiB" in wide.sentence
    narrow = choose("auto", replace(ROOMY, free=needed - 1024))
    assert narrow.keeps_fp8
    assert "20.00 GiB of bfloat16, 10 % more and a cache of 1.00 GiB do not fit" in narrow.sentence


@pytest.mark.parametrize(("wanted", "keeps"), [("fp8", True), ("compute", False)])
@pytest.mark.parametrize("hardware", [H100, A100, CPU])
def test_what_is_asked_for_is_done(wanted: Wanted, keeps: bool, hardware: Hardware) -> None:
    choice = choose(wanted, replace(ROOMY, hardware=hardware))
    assert choice.keeps_fp8 is keeps
    assert f"as --weights {wanted} says" in choice.sentence


def test_a_checkpoint_without_fp8_leaves_no_choice() -> None:
    choice = choose("fp8", replace(ROOMY, kept=20 * GIB))
    assert not choice.keeps_fp8
    assert "no FP8 to keep" in choice.sentence


@pytest.mark.parametrize("hardware", [A100, H100])
@pytest.mark.parametrize(("wanted", "weights"), [("fp8", 10), ("compute", 20)])
def test_weights_that_do_not_fit_are_refused_to_the_byte(wanted: Wanted, weights: int, hardware: Hardware) -> None:
    """Room for loading and for the least cache counts, whoever chose the form."""
    enough = replace(ROOMY, hardware=hardware, free=weights * GIB * 11 // 10 + GIB)
    choose(wanted, enough)
    sentence = rf"{weights}\.00 GiB a rank, 10 % more to load them and a cache of 1\.00 GiB do not fit into"
    with pytest.raises(CheckpointError, match=sentence):
        choose(wanted, replace(enough, free=enough.free - 1))


def test_auto_refuses_what_fits_in_neither_form() -> None:
    with pytest.raises(CheckpointError, match=r"10\.00 GiB a rank.* do not fit into 9\.00 GiB of free memory: use \d+"):
        choose("auto", replace(ROOMY, free=9 * GIB))


def real_model(ranks: int, free: int, redundant: int = 0, attention: Attention = "tensor") -> Situation:
    """DeepSeek-V3 in FP8 on ranks of a size."""
    layout = Layout(1, ranks, attention, redundant, split_dense=False)
    kept = weight_bytes(DEEPSEEK_V3_671B, layout)
    return replace(ROOMY, kept=kept, dense=2 * kept, free=free * GIB, layout=layout, hardware=H100)


@pytest.mark.parametrize(
    ("now", "hint"),
    [
        (real_model(8, 78), "use 16 ranks"),
        (real_model(8, 40), "use 32 ranks"),
        (real_model(8, 78, redundant=32), "use 16 ranks"),
        (real_model(8, 108, redundant=32, attention="data"), "use 9 ranks"),
        (real_model(8, 10), "free memory: no number of ranks like this one fits"),
    ],
)
def test_a_refusal_names_the_next_number_of_ranks_that_fits(now: Situation, hint: str) -> None:
    with pytest.raises(CheckpointError, match=f"{hint}$"):
        choose("auto", now)


def test_a_refusal_of_wide_weights_offers_fp8_only_where_that_fits() -> None:
    with pytest.raises(CheckpointError, match=r"keep them in FP8 or use 16 ranks$"):
        choose("compute", real_model(8, 120))
    with pytest.raises(CheckpointError, match=r"of free memory: use 32 ranks$"):
        choose("compute", real_model(8, 78))


def test_free_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       24000000 kB\nMemAvailable:   22000000 kB\n")
    assert available_bytes(file) == 22_000_000 * 1024
    assert available_bytes(tmp_path / "nothing") is None


def test_a_containers_limit_counts_and_its_page_cache_does_not(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\nactive_file 500\ninactive_file 1000\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert container_bytes(tmp_path) == 8500
    (tmp_path / "memory.max").write_text("max\n")
    assert container_bytes(tmp_path) is None
    assert container_bytes(tmp_path / "nothing") is None
