"""BF16 becomes FP8 blocks a few rows at a time, and a folder that is there already is never touched."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepseek_runtime.dist.group import Group
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.weights import convert as module
from deepseek_runtime.weights.convert import convert, quantise
from deepseek_runtime.weights.index import INDEX_NAME, CheckpointError
from deepseek_runtime.weights.load import inspect, load_model
from tiny_checkpoint import (
    Tensors,
    dequantise,
    quantise_all,
    random_tensors,
    v2_lite_config,
    v3_config,
    write_checkpoint,
    write_tensors,
)

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "bf16"
    write_checkpoint(folder, v3_config())
    (folder / "tokenizer.json").write_text("{}")
    (folder / "figures").mkdir()
    (folder / "figures" / "plot.txt").write_text("a figure")
    (folder / ".verified.json").write_text("hashes of other files")
    return folder


def tensors_of(folder: Path) -> Tensors:
    """All tensors of a checkpoint, as safetensors' own reader sees them."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def logits(folder: Path) -> torch.Tensor:
    model = load_model(folder, Group(), device=CPU, dtype=torch.float32)
    cache = LatentCache.create(model.config, 1, 16, CPU, torch.float32)
    ids = torch.arange(12) * 7 % 200
    return model.logits(model.forward(StepBatch(ids, torch.arange(12), [12], [0], [[0]]), cache))


@pytest.mark.parametrize("raw", [v3_config(), v2_lite_config(), v3_config(num_nextn_predict_layers=0)])
def test_projections_become_the_nearest_fp8_and_the_rest_keeps_every_bit(
    raw: dict[str, object], tmp_path: Path
) -> None:
    before = write_checkpoint(tmp_path / "a", raw)
    done = convert(tmp_path / "a", tmp_path / "b")
    after = tensors_of(tmp_path / "b")
    matrices = {name for name in quantise_all(before) if f"{name}_scale_inv" in quantise_all(before)}
    assert done.matrices == len(matrices) > 0
    assert after.keys() == before.keys() | {f"{name}_scale_inv" for name in matrices}
    for name in before.keys() - matrices:
        assert torch.equal(after[name].view(torch.uint8), before[name].view(torch.uint8)), name
    for name in matrices:
        scale = after[f"{name}_scale_inv"]
        error = (dequantise(after[name], scale) - before[name].float()).abs()
        bound = before[name].float().abs() / 16 + scale.max() * 2**-9
        assert (error <= bound).all(), name


def test_the_new_checkpoint_computes_nearly_the_same(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "fp8")
    config, index = inspect(tmp_path / "fp8")
    assert config.fp8_block == (128, 128)
    assert config.num_mtp_layers == 1
    assert index["model.layers.0.self_attn.kv_b_proj.weight"].dtype == "F8_E4M3"
    old, new = logits(source), logits(tmp_path / "fp8")
    assert 0 < (old - new).norm() / old.norm() < 0.1


def test_what_is_no_weight_is_copied_and_what_describes_other_files_is_not(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "fp8")
    names = {path.name for path in (tmp_path / "fp8").iterdir() if path.suffix != ".safetensors"}
    assert names == {"config.json", INDEX_NAME, "tokenizer.json", "figures"}
    assert (tmp_path / "fp8" / "figures" / "plot.txt").read_text() == "a figure"
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "fp8"))
    assert new.pop("quantization_config")["weight_block_size"] == [128, 128]
    assert new == old


def test_files_are_bounded_and_their_index_is_right(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 200_000)
    done = convert(source, tmp_path / "fp8")
    files = sorted((tmp_path / "fp8").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):06d}.safetensors"
    assert len(files) > done.nbytes // 200_000 > 2
    for file in files:
        assert sum(tensor.nbytes for tensor in load_file(file).values()) <= 200_000
    logits(tmp_path / "fp8")
    assert "total_size" not in caplog.text


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 257), (300, 90)])
def test_ragged_blocks_have_scales_of_their_own(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    values, scale = quantise(matrix)
    assert values.shape == shape
    assert scale.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    assert ((dequantise(values, scale) - matrix).abs() <= matrix.abs() / 16 + scale.max() * 2**-9).all()
    assert values.float().abs().max() == 448


def test_a_block_of_zeros_stays_zero() -> None:
    values, scale = quantise(torch.zeros(128, 128))
    assert not dequantise(values, scale).any()


def test_progress_rises_to_the_bytes_that_were_announced(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = convert(source, tmp_path / "fp8", lambda *figures: seen.append(figures))
    assert [written for written, _ in seen] == sorted({written for written, _ in seen})
    assert seen[-1] == (done.nbytes, done.nbytes)


def refusal(source: Path, destination: Path) -> str:
    """Why a conversion is refused; nothing of it is left."""
    before = sorted(destination.parent.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        convert(source, destination)
    assert sorted(destination.parent.rglob("*")) == before
    return str(caught.value)


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    assert "holds something" in refusal(source, full)
    assert "holds something" in refusal(source, full / "mine.txt")
    assert "holds something" in refusal(source, source)
    assert "lies in the checkpoint" in refusal(source, source / "fp8")
    (tmp_path / "half.partial").mkdir()
    assert "half.partial: is left of a conversion" in refusal(source, tmp_path / "half")
    write_checkpoint(tmp_path / "quantised", v3_config(), fp8=True)
    assert "is FP8 already" in refusal(tmp_path / "quantised", tmp_path / "fp8")
    (source / "model-00002-of-000002.safetensors").unlink()
    assert "cannot be loaded" in refusal(source, tmp_path / "fp8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    tensors = random_tensors(v3_config(), 0)
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = value
    write_tensors(tmp_path / "a", v3_config(), tensors)
    assert "model.layers.1.self_attn.o_proj.weight holds values that are no finite" in refusal(
        tmp_path / "a", tmp_path / "b"
    )


def test_an_empty_folder_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "fp8").mkdir()
    convert(source, tmp_path / "fp8")
    assert inspect(tmp_path / "fp8")[0].fp8_block


def test_no_tensor_is_ever_in_memory_as_a_whole(tmp_path: Path) -> None:
    wide = {"hidden_size": 2048, "intermediate_size": 24_576, "num_hidden_layers": 1, "num_nextn_predict_layers": 0}
    tensors = write_checkpoint(tmp_path / "a", v3_config(**wide))
    largest = max(tensor.nbytes for tensor in tensors.values())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("convert_program.py")), str(tmp_path / "a"), str(tmp_path / "b")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert largest > 100 * 10**6
    assert int(done.stdout) < largest


def dsv3(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line."""
    command = [sys.executable, "-m", "deepseek_runtime.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_the_command_converts_or_says_in_a_sentence_why_not(source: Path, tmp_path: Path) -> None:
    done = dsv3("convert", "--to", "fp8", str(source), str(tmp_path / "fp8"))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{tmp_path}/fp8: \d+ matrices in FP8, 0\.00 GB\n", done.stdout)
    again = dsv3("convert", str(source), str(tmp_path / "fp8"))
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"error: {tmp_path}/fp8: holds something; name a folder that is empty or not there yet\n"
    other = dsv3("convert", "--to", "int4", str(source), str(tmp_path / "int4"))
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "--to must be fp8" in other.stderr
