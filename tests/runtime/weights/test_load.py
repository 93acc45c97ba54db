"""A rank reads its own slices, keeps FP8 as FP8, and reports how far it is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.model.parallelize import Shard
from deepseek_runtime.weights.index import CheckpointError
from deepseek_runtime.weights.load import Target, inspect, load_model, plan_parts, read_weights
from tiny_checkpoint import Tensors, dequantise, dequantise_all, v3_config, write_checkpoint, write_tensors

CPU = torch.device("cpu")
CONFIG = v3_config()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    folder = tmp_path_factory.mktemp("fp8")
    return folder, write_checkpoint(folder, CONFIG, fp8=True)


def read(folder: Path, rank: int, ranks: int, dtype: torch.dtype = torch.float32) -> dict[str, Weight]:
    config, index = inspect(folder)
    shard = Shard.of(config, rank, ranks)
    return read_weights(plan_parts(shard, index), shard, Target(CPU, dtype))


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


def test_a_rank_plans_to_read_only_its_own_bytes(checkpoint: tuple[Path, Tensors]) -> None:
    config, index = inspect(checkpoint[0])
    whole, half = (
        {p.parameter.name: p.nbytes for p in plan_parts(Shard.of(config, ranks - 1, ranks), index)} for ranks in (1, 2)
    )
    assert {e for e in range(8) if f"model.layers.1.mlp.experts.{e}.up_proj.weight" in half} == {4, 5, 6, 7}
    for name in ("q_b_proj", "kv_b_proj", "o_proj"):
        assert half[f"model.layers.0.self_attn.{name}.weight"] * 2 == whole[f"model.layers.0.self_attn.{name}.weight"]
    assert not any("embed_tokens" in name and "layers" in name for name in whole), "the MTP layer's copies stay unread"


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
        load_model(tmp_path, Group(), device=CPU, dtype=torch.float32)


def test_wrong_configurations_and_group_sizes_are_checkpoint_errors(
    tmp_path: Path, checkpoint: tuple[Path, Tensors]
) -> None:
    with pytest.raises(CheckpointError, match="is this a checkpoint folder"):
        load_model(tmp_path, Group(), device=CPU, dtype=torch.float32)

    class Three(Group):
        world_size = 3

    with pytest.raises(CheckpointError, match="8 experts do not divide over 3 ranks"):
        load_model(checkpoint[0], Three(), device=CPU, dtype=torch.float32)
