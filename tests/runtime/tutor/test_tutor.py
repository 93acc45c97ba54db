"""The shipped checkpoint: in the hub's layout, and right on problems that it never saw."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.weights.load import load_model
from tutor_training.evaluate import answer_all
from tutor_training.problems import held_out_problems

TUTOR = Path(__file__).resolve().parents[3] / "runtime/deepseek_runtime/tutor"
MEGABYTES = 1e6


def _headers() -> dict[str, Any]:
    """Type and shape of every tensor, from the shards' own headers."""
    found: dict[str, Any] = {}
    for shard in sorted(TUTOR.glob("*.safetensors")):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found |= header
    return found


@pytest.fixture(scope="module")
def model() -> DeepSeekV3Model:
    return load_model(TUTOR, join_group(), device=torch.device("cpu"), dtype=torch.float32)


def test_it_is_small_and_sharded_and_its_index_is_complete() -> None:
    index = json.loads((TUTOR / "model.safetensors.index.json").read_text())
    files = [path for path in TUTOR.iterdir() if path.is_file()]
    assert len(set(index["weight_map"].values())) >= 2
    assert set(index["weight_map"]) == set(_headers())
    assert sum(path.stat().st_size for path in files) <= 10 * MEGABYTES
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "serving pods run as another user"


def test_its_types_are_the_real_model_s() -> None:
    headers = _headers()
    fp8 = {name: h for name, h in headers.items() if h["dtype"] == "F8_E4M3"}
    for name, header in fp8.items():
        blocks = [-(-size // 128) for size in header["shape"]]
        assert headers[f"{name}_scale_inv"]["shape"] == blocks, name
    assert any(size % 128 for header in fp8.values() for size in header["shape"]), "no ragged last block"
    biases = [h["dtype"] for name, h in headers.items() if name.endswith("e_score_correction_bias")]
    assert biases
    assert set(biases) == {"F32"}
    assert headers["model.layers.4.eh_proj.weight"]["dtype"] == "BF16"


def test_some_rows_of_the_vocabulary_are_padding_as_in_the_real_model() -> None:
    config = json.loads((TUTOR / "config.json").read_text())
    assert Tokenizer.from_file(str(TUTOR / "tokenizer.json")).get_vocab_size() < config["vocab_size"]


def test_it_answers_problems_that_it_never_saw(model: DeepSeekV3Model) -> None:
    tokenizer = Tokenizer.from_file(str(TUTOR / "tokenizer.json"))
    score = answer_all(model, tokenizer, held_out_problems(100, seed=3), batch_size=50)
    assert score.right >= 97
    assert score.drafts_right / score.drafts >= 0.9
