"""A rank reads its own slices, in the form that was chosen for them, and reports how far it is."""

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.parallelize import Attention, Shard
from deepseek_runtime.sizing import MIN_CACHE_TOKENS
from deepseek_runtime.weights import load
from deepseek_runtime.weights.index import ITEM_BYTES, CheckpointError
from deepseek_runtime.weights.load import LoadSummary, inspect, load_model
from deepseek_runtime.weights.read_parts import Target, plan_parts, read_weights
from deepseek_runtime.weights.residency import MARGIN, Wanted
from tiny_checkpoint import Tensors, dequantise, dequantise_all, v3_config, write_checkpoint, write_tensors

CPU = torch.device("cpu")
CONFIG = v3_config()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    folder = tmp_path_factory.mktemp("fp8")
    return folder, write_checkpoint(folder, CONFIG, fp8=True)


def read(
    folder: Path,
    rank: int,
    ranks: int,
    dtype: torch.dtype = torch.float32,
    *,
    keeps_fp8: bool = True,
    fnuz: bool = False,
) -> dict[str, Weight]:
    config, index = inspect(folder)
    shard = Shard.of(config, rank, ranks)
    return read_weights(plan_parts(shard, index), shard, Target(CPU, dtype, keeps_fp8, fnuz)).weights


def real(weight: Weight) -> Tensor:
    return weight.dequantise(torch.float32) if isinstance(weight, Fp8Weight) else weight


def test_projections_stay_in_fp8_and_the_rest_has_its_declared_precision(checkpoint: tuple[Path, Tensors]) -> None:
    weights = read(checkpoint[0], 0, 1, torch.bfloat16)
    fp8 = {name for name, weight in weights.items() if isinstance(weight, Fp8Weight)}
    assert all(weights[name].values.dtype == torch.float8_e4m3fn for name in fp8)  # type: ignore[union-attr]
    assert {name.rsplit(".", 2)[-2] for name in fp8} == {
        *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    dense = {name: weight.dtype for name, weight in weights.items() if isinstance(weight, Tensor)}
    in_float32 = {name for name, dtype in dense.items() if dtype == torch.float32}
    assert in_float32 == {name for name in dense if ".mlp.gate." in name}
    assert set(dense.values()) == {torch.bfloat16, torch.float32}


def test_the_correction_bias_keeps_every_bit(checkpoint: tuple[Path, Tensors]) -> None:
    folder, written = checkpoint
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    bias = read(folder, 0, 1, torch.bfloat16)[name]
    assert isinstance(bias, Tensor)
    assert torch.equal(bias, written[name])
    assert not torch.equal(bias, bias.bfloat16().float())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ranks_parts_put_together_are_the_checkpoint(ranks: int, checkpoint: tuple[Path, Tensors]) -> None:
    folder, written = checkpoint
    parts = [read(folder, rank, ranks) for rank in range(ranks)]
    plain = dequantise_all(written)
    for name in ("q_b_proj", "kv_b_proj"):
        key = f"model.layers.2.self_attn.{name}.weight"
        assert torch.equal(torch.cat([real(part[key]) for part in parts]), plain[key])
    key = "model.layers.2.self_attn.o_proj.weight"
    assert torch.equal(torch.cat([real(part[key]) for part in parts], dim=1), plain[key])
    for name in ("gate_proj", "up_proj", "down_proj"):
        experts = torch.cat([real(part[f"model.layers.3.mlp.experts.{name}.weight"]) for part in parts])
        expected = torch.stack([plain[f"model.layers.3.mlp.experts.{e}.{name}.weight"] for e in range(8)])
        assert torch.equal(experts, expected)


def test_a_rank_reads_only_its_own_bytes(checkpoint: tuple[Path, Tensors]) -> None:
    config, index = inspect(checkpoint[0])
    held: list[dict[str, int]] = []
    for ranks in (1, 2):
        shard = Shard.of(config, ranks - 1, ranks)
        parts, target = plan_parts(shard, index), Target(CPU, torch.float32)
        held.append({part.parameter.name: math.prod(part.cut.shape) for part in parts})
        of_file = sum(math.prod(part.cut.shape) * ITEM_BYTES[part.values.dtype] for part in parts)
        of_scales = sum(
            math.prod(part.scales.cut.shape) * 4 for part in parts if part.scales and target.holds_fp8(part)
        )
        assert read_weights(parts, shard, target).bytes_read == of_file + of_scales
    whole, half = held
    assert {e for e in range(8) if f"model.layers.1.mlp.experts.{e}.up_proj.weight" in half} == {4, 5, 6, 7}
    for name in ("q_b_proj", "kv_b_proj", "o_proj"):
        assert half[f"model.layers.0.self_attn.{name}.weight"] * 2 == whole[f"model.layers.0.self_attn.{name}.weight"]
    assert not any("embed_tokens" in name and "layers" in name for name in whole), "the MTP layer's copies stay unread"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_fp8_every_matrix_is_dequantised_once(dtype: torch.dtype, checkpoint: tuple[Path, Tensors]) -> None:
    folder, written = checkpoint
    weights, plain = read(folder, 1, 2, dtype, keeps_fp8=False), dequantise_all(written)
    assert all(isinstance(weight, Tensor) for weight in weights.values())
    o_proj, up = weights["model.layers.2.self_attn.o_proj.weight"], weights["model.layers.3.mlp.experts.up_proj.weight"]
    assert isinstance(up, Tensor)
    assert torch.equal(real(o_proj), plain["model.layers.2.self_attn.o_proj.weight"][:, 64:].to(dtype))
    assert torch.equal(up[3], plain["model.layers.3.mlp.experts.7.up_proj.weight"].to(dtype))


def test_on_mi300_blocks_become_the_fp8_that_it_knows(checkpoint: tuple[Path, Tensors]) -> None:
    folder, written = checkpoint
    weights, plain = read(folder, 0, 1, fnuz=True), dequantise_all(written)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = weights[name]
    assert isinstance(weight, Fp8Weight)
    assert weight.values.dtype == torch.float8_e4m3fnuz
    assert not weight.values.float().isnan().any()
    spread = weight.scale.repeat_interleave(128, 0)[:264].repeat_interleave(128, 1)[:, :160]
    assert torch.equal(weight.values.float() * spread, plain[name])


def test_an_expert_with_a_redundant_copy_is_in_both_slots(checkpoint: tuple[Path, Tensors]) -> None:
    config, index = inspect(checkpoint[0])
    shard = Shard.of(config, 0, 1, redundant_experts=2)
    weights = read_weights(plan_parts(shard, index), shard, Target(CPU, torch.float32)).weights
    stack = real(weights["model.layers.1.mlp.experts.down_proj.weight"])
    plain = dequantise_all(checkpoint[1])
    for slot, expert in enumerate((0, 1, 2, 3, 4, 5, 6, 7, 0, 1)):
        assert torch.equal(stack[slot], plain[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"])


@pytest.mark.parametrize(("residency", "keeps", "word"), [("fp8", True, "stay in FP8"), ("compute", False, "become")])
def test_loading_says_how_fp8_is_held_and_what_it_took(
    residency: Wanted, keeps: bool, word: str, checkpoint: tuple[Path, Tensors], caplog: pytest.LogCaptureFixture
) -> None:
    summaries: list[LoadSummary] = []
    with caplog.at_level(logging.INFO, "deepseek_runtime.weights"):
        load_model(
            checkpoint[0], Group(), device=CPU, dtype=torch.float32, residency=residency, on_loaded=summaries.append
        )
    (summary,) = summaries
    assert summary.residency.keeps_fp8 is keeps
    assert f"weights {word}" in caplog.text
    assert f"as --weights {residency} says" in caplog.text
    assert "GB/s" in caplog.text
    assert summary.read < summary.held if not keeps else summary.read > 0


def test_weights_in_both_forms_give_the_same_logits(checkpoint: tuple[Path, Tensors]) -> None:
    ids = torch.arange(12) * 7 % 200
    logits = []
    for residency in ("fp8", "compute"):
        model = load_model(checkpoint[0], Group(), device=CPU, dtype=torch.float32, residency=residency)  # type: ignore[arg-type]
        cache = LatentCache.create(model.config, 1, 16, CPU, torch.float32)
        logits.append(model.logits(model.forward(StepBatch(ids, torch.arange(12), [12], [0], [[0]]), cache)))
    torch.testing.assert_close(*logits)


def test_without_drafts_the_mtp_layer_is_neither_read_nor_held(
    checkpoint: tuple[Path, Tensors], caplog: pytest.LogCaptureFixture
) -> None:
    summaries: list[LoadSummary] = []
    with caplog.at_level(logging.INFO, "deepseek_runtime.weights"):
        models = [
            load_model(
                checkpoint[0], Group(), device=CPU, dtype=torch.float32, residency="fp8", mtp=mtp,
                on_loaded=summaries.append,
            )
            for mtp in (True, False)
        ]  # fmt: skip
    config, index = inspect(checkpoint[0])
    target, layer = Target(CPU, torch.float32), "model.layers.3."
    parts = [part for part in plan_parts(Shard.of(config, 0, 1), index) if part.parameter.name.startswith(layer)]
    whole, without = summaries
    assert whole.held - without.held == sum(map(target.bytes_held, parts)) > 0
    stored = sum(math.prod(part.cut.shape) * ITEM_BYTES[part.values.dtype] for part in parts)
    assert stored < whole.read - without.read < stored * 1.01
    assert [LatentCache.create(model.config, 1, 16, CPU, torch.float32).num_layers for model in models] == [4, 3]
    assert f"the {sum(name.startswith(layer) for name in index)} tensors of the MTP layer stay unread" in caplog.text
    assert caplog.text.count("stay unread") == 1


@pytest.mark.parametrize("attention", ["tensor", "data"])
def test_no_rank_of_a_group_holds_an_mtp_layer_that_nothing_needs(
    attention: Attention, checkpoint: tuple[Path, Tensors]
) -> None:
    for mtp, layers in ((True, {"0", "1", "2", "3"}), (False, {"0", "1", "2"})):
        config, index = inspect(checkpoint[0], mtp=mtp)
        shard = Shard.of(config, 1, 2, attention=attention)
        names = {part.parameter.name for part in plan_parts(shard, index)}
        assert {name.split(".")[2] for name in names if name.startswith("model.layers.")} == layers


def test_a_damaged_mtp_layer_is_refused_only_where_it_is_wanted(
    tmp_path: Path, checkpoint: tuple[Path, Tensors]
) -> None:
    tensors = {name: tensor for name, tensor in checkpoint[1].items() if "layers.3.self_attn.o_proj" not in name}
    config = {**CONFIG, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    write_tensors(tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.self_attn\.o_proj\.weight: missing"):
        load_model(tmp_path, Group(), device=CPU, dtype=torch.float32)
    load_model(tmp_path, Group(), device=CPU, dtype=torch.float32, mtp=False)


def test_the_mtp_layer_counts_for_the_form_of_weights_only_where_it_is_held(
    checkpoint: tuple[Path, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory between what both need to become dense: without the layer they do, with it they stay FP8."""
    monkeypatch.setattr(load, "choose_kernels", lambda *_, **__: TorchKernels())
    needed = []
    for mtp in (True, False):
        config, index = inspect(checkpoint[0], mtp=mtp)
        parts = plan_parts(Shard.of(config, 0, 1), index)
        dense = sum(Target(CPU, torch.float32, keeps_fp8=False).bytes_held(part) for part in parts)
        needed.append(dense * MARGIN + MIN_CACHE_TOKENS * config.num_cache_layers * config.cache_width * 4)
    monkeypatch.setattr(load, "free_memory", lambda _: sum(needed) / 2)
    summaries: list[LoadSummary] = []
    for mtp in (True, False):
        load_model(checkpoint[0], Group(), device=CPU, dtype=torch.float32, mtp=mtp, on_loaded=summaries.append)
    assert [summary.residency.keeps_fp8 for summary in summaries] == [True, False]


def test_progress_rises_to_the_bytes_that_were_announced(checkpoint: tuple[Path, Tensors]) -> None:
    seen: list[tuple[int, int]] = []
    load_model(checkpoint[0], Group(), device=CPU, dtype=torch.float32, on_progress=lambda *done: seen.append(done))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}


def test_scales_stored_as_powers_of_two_are_read(tmp_path: Path, checkpoint: tuple[Path, Tensors]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    scale = (2.0 ** torch.arange(-3, 3)).view(3, 2)
    config = {**CONFIG, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors = {**checkpoint[1], f"{name}_scale_inv": scale.to(torch.float8_e8m0fnu)}
    write_tensors(tmp_path, config, tensors)
    assert torch.equal(real(read(tmp_path, 0, 1)[name]), dequantise(tensors[name], scale))


def test_layers_with_some_experts_in_fp8_are_refused(tmp_path: Path, checkpoint: tuple[Path, Tensors]) -> None:
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    config = {**CONFIG, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors = {**checkpoint[1], name: dequantise_all(checkpoint[1])[name].bfloat16()}
    del tensors[f"{name}_scale_inv"]
    write_tensors(tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match=r"experts\.5\.up_proj\.weight: some experts of this layer are FP8"):
        load_model(tmp_path, Group(), device=CPU, dtype=torch.float32, residency="fp8")
    load_model(tmp_path, Group(), device=CPU, dtype=torch.float32, residency="compute")


def test_wrong_configurations_and_group_sizes_are_checkpoint_errors(
    tmp_path: Path, checkpoint: tuple[Path, Tensors]
) -> None:
    with pytest.raises(CheckpointError, match="is this a checkpoint folder"):
        load_model(tmp_path, Group(), device=CPU, dtype=torch.float32)

    class Three(Group):
        world_size = 3

    with pytest.raises(CheckpointError, match="8 experts do not divide over 3 ranks"):
        load_model(checkpoint[0], Three(), device=CPU, dtype=torch.float32)
