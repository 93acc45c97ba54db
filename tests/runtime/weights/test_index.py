"""All that is wrong with a checkpoint's files is said in one error, before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_runtime.dist.group import Group
from deepseek_runtime.weights.index import INDEX_NAME, CheckpointError, read_header
from deepseek_runtime.weights.load import inspect, load_model
from tiny_checkpoint import (
    Tensors,
    quantise_all,
    random_tensors,
    v2_lite_config,
    v3_config,
    write_checkpoint,
    write_tensors,
)

FIRST, SECOND = "model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, v3_config(), fp8=True)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        inspect(folder)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> str:
    """Change the tensors of a V3 checkpoint in FP8, write it, and return why it is refused."""
    config = json.loads((folder / "config.json").read_text())
    tensors = quantise_all(random_tensors(v3_config(), 0))
    change(tensors)
    write_tensors(folder, config, tensors)
    return refusal(folder)


def test_a_whole_checkpoint_is_accepted(folder: Path) -> None:
    config, index = inspect(folder)
    assert config.num_mtp_layers == 1
    assert index["lm_head.weight"].shape == (200, 160)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / SECOND).unlink()
    assert f"{SECOND}: No such file" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file_is_named_with_its_sizes(keep: int, folder: Path) -> None:
    file = folder / FIRST
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    message = refusal(folder)
    assert f"{FIRST}:" in message
    assert f"{len(data[:keep]):,} bytes" in message


def test_all_broken_files_are_listed_together(folder: Path) -> None:
    (folder / FIRST).write_bytes(b"not a safetensors file at all")
    (folder / SECOND).unlink()
    message = refusal(folder)
    assert "2 problems" in message
    assert FIRST in message
    assert SECOND in message


def test_a_damaged_header_is_named(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[9:12] = b"\x00\x00\x00"
    (folder / FIRST).write_bytes(data)
    assert f"{FIRST}: its header is damaged" in refusal(folder)


def test_missing_unexpected_and_misshapen_tensors_are_listed_together(folder: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
        del tensors["model.layers.2.self_attn.o_proj.weight_scale_inv"]
        tensors["model.layers.0.extra.weight"] = torch.zeros(1)
        tensors["model.norm.weight"] = torch.zeros(161)

    message = rewrite(folder, change)
    assert "model.layers.1.mlp.experts.3.up_proj.weight: missing" in message
    assert "model.layers.2.self_attn.o_proj.weight_scale_inv: missing, so that the FP8 values of" in message
    assert "model.layers.0.extra.weight: unexpected tensor" in message
    assert "model.norm.weight: shape [161], expected [160] by config.json" in message
    assert "4 problems" in message


def test_scales_of_another_block_size_are_refused(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    message = rewrite(folder, lambda tensors: tensors.update({name: torch.ones(1, 1)}))
    assert f"{name}: shape [1, 1], expected [3, 2] for blocks of [128, 128]" in message


def test_a_scale_without_fp8_values_is_unexpected(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    message = rewrite(folder, lambda tensors: tensors.update({name: tensors[name].bfloat16()}))
    assert f"{name}_scale_inv: unexpected tensor" in message


def test_types_that_mean_nothing_for_a_tensor_are_refused(folder: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)

    message = rewrite(folder, change)
    assert "model.norm.weight: type F8_E4M3, known are BF16, F16, F32" in message
    assert "lm_head.weight: type I8, known are F8_E4M3, BF16, F16, F32" in message


def test_fp8_without_a_quantisation_config_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path, v3_config(), quantise_all(random_tensors(v3_config(), 0)))
    assert "FP8, but config.json has no quantization_config" in refusal(tmp_path)


def test_a_tensor_that_the_index_promises_and_the_file_lacks_is_named(folder: Path) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    index["weight_map"]["model.ghost.weight"] = FIRST
    (folder / INDEX_NAME).write_text(json.dumps(index))
    assert f"{FIRST}: model.ghost.weight is in {INDEX_NAME} but not in the file" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": "../../etc/passwd"}}'])
def test_a_damaged_index_is_named(text: str, folder: Path) -> None:
    (folder / INDEX_NAME).write_text(text)
    assert INDEX_NAME in refusal(folder)


def test_a_lost_shard_of_many_tensors_stays_readable(folder: Path) -> None:
    message = rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".experts." in name])
    assert "72 problems" in message
    assert message.endswith("… and 22 more")


def test_an_empty_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(v3_config()))
    assert f"there is neither {INDEX_NAME} nor model.safetensors" in refusal(tmp_path)


def test_a_checkpoint_of_one_file_needs_no_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, v2_lite_config())
    for file in (FIRST, SECOND, INDEX_NAME):
        (tmp_path / file).unlink()
    save_file(random_tensors(v2_lite_config(), 0), tmp_path / "model.safetensors")
    assert len(inspect(tmp_path)[1]) == len(read_header(tmp_path / "model.safetensors"))


def test_a_conversion_that_dropped_the_mtp_layer_loads_without_it(folder: Path) -> None:
    tensors = {name: t for name, t in random_tensors(v3_config(), 0).items() if ".layers.3." not in name}
    write_tensors(folder, v3_config(), tensors)
    assert inspect(folder)[0].num_mtp_layers == 0


def test_a_main_layer_too_many_is_not_taken_for_an_mtp_layer(folder: Path) -> None:
    """Three main layers, and a config that says two."""
    tensors = {name: t for name, t in random_tensors(v3_config(), 0).items() if ".layers.3." not in name}
    for mtp in (0, 1):
        write_tensors(folder, v3_config(num_hidden_layers=2, num_nextn_predict_layers=mtp), tensors)
        message = refusal(folder)
        assert "model.layers.2.self_attn.o_proj.weight: unexpected tensor" in message
        assert f"{sum('.layers.2.' in name for name in tensors)} problems" in message


def test_an_mtp_layer_that_lost_a_tensor_is_not_taken_for_none(folder: Path) -> None:
    for lost in ("enorm", "hnorm", "eh_proj"):
        message = rewrite(folder, lambda tensors, lost=lost: tensors.pop(f"model.layers.3.{lost}.weight"))  # type: ignore[misc]
        assert f"model.layers.3.{lost}.weight: missing" in message


def logged_by_loading(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings while a checkpoint is loaded."""
    caplog.clear()
    load_model(folder, Group(), device=torch.device("cpu"), dtype=torch.float32)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_checkpoint_that_lost_its_mtp_layer_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert logged_by_loading(folder, caplog) == []
    tensors = {name: t for name, t in random_tensors(v3_config(), 0).items() if ".layers.3." not in name}
    write_tensors(folder, v3_config(), tensors)
    (sentence,) = logged_by_loading(folder, caplog)
    assert "config.json has an MTP layer and the files have none: nothing can be drafted" in sentence
    write_tensors(folder, v3_config(num_nextn_predict_layers=0), tensors)
    assert logged_by_loading(folder, caplog) == []


def test_a_tensor_in_two_files_is_refused_with_both_names(folder: Path) -> None:
    name = "model.embed_tokens.weight"
    save_file({**load_file(folder / SECOND), name: torch.zeros(200, 160, dtype=torch.bfloat16)}, folder / SECOND)
    message = refusal(folder)
    assert f"{name}: is in {FIRST} and in {SECOND}" in message
    assert "1 problem:" in message


def test_an_index_that_promises_another_size_is_said_and_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    held = index["metadata"]["total_size"]
    index["metadata"]["total_size"] = held + 1
    (folder / INDEX_NAME).write_text(json.dumps(index))
    (sentence,) = logged_by_loading(folder, caplog)
    assert f"total_size is {held + 1}, but the files hold {held} bytes of tensors" in sentence
    nothing: list[object] = [{}, None, []]
    for metadata in nothing:
        (folder / INDEX_NAME).write_text(json.dumps({**index, "metadata": metadata}))
        assert logged_by_loading(folder, caplog) == []


def test_an_mtp_layer_that_is_not_configured_is_passed_over(folder: Path) -> None:
    write_tensors(folder, v3_config(num_nextn_predict_layers=0), random_tensors(v3_config(), 0))
    config, _ = inspect(folder)
    assert config.num_mtp_layers == 0


def test_an_mtp_layer_without_its_copies_of_embedding_and_head_is_complete(folder: Path) -> None:
    copies = ("model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight")
    tensors = {name: t for name, t in random_tensors(v3_config(), 0).items() if name not in copies}
    write_tensors(folder, v3_config(), tensors)
    assert inspect(folder)[0].num_mtp_layers == 1
