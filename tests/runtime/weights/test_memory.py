"""Loading needs little more memory than the weights, whichever way they take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_checkpoint import v3_config, write_checkpoint

PROGRAM = Path(__file__).with_name("load_program.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LEAST_BYTES = 150 * 10**6
WAYS = [("bfloat16", "fp8"), ("float32", "fp8"), ("bfloat16", "compute"), ("float32", "compute")]


def write(folder: Path, **sizes: int) -> Path:
    """A checkpoint large enough that what the process itself needs does not count."""
    write_checkpoint(folder, v3_config(q_lora_rank=512, **sizes), fp8=True)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Almost all of it are experts."""
    widths = {"hidden_size": 1024, "moe_intermediate_size": 1024, "intermediate_size": 2048, "vocab_size": 4096}
    heads = {"num_attention_heads": 8, "kv_lora_rank": 128, "v_head_dim": 64}
    return write(tmp_path_factory.mktemp("large"), n_routed_experts=16, **heads, **widths)


@pytest.fixture(scope="module")
def by_columns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most of it are output projections, of which a rank takes columns and must read around those of the others."""
    widths = {"hidden_size": 3072, "moe_intermediate_size": 128, "intermediate_size": 512}
    heads = {"num_attention_heads": 128, "kv_lora_rank": 32, "v_head_dim": 128}
    return write(tmp_path_factory.mktemp("columns"), **heads, **widths)


def figures(launcher: list[str], folder: Path, way: tuple[str, str], out: Path) -> list[dict[str, Any]]:
    """What loading took on each rank."""
    done = subprocess.run(
        [*launcher, str(PROGRAM), str(folder), *way, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_the_peak_is_the_weights_and_a_tenth(way: tuple[str, str], large: Path, tmp_path: Path) -> None:
    (alone,) = figures([sys.executable], large, way, tmp_path)
    assert alone["read"] > LEAST_BYTES
    assert alone["held"] >= LEAST_BYTES
    assert 0.95 * alone["held"] < alone["peak"] <= 1.1 * alone["held"], alone


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]], ids="-".join)
def test_each_of_two_ranks_that_split_the_heads_needs_its_part_and_a_tenth(
    way: tuple[str, str], by_columns: Path, tmp_path: Path
) -> None:
    ranks = figures(TORCHRUN, by_columns, way, tmp_path)
    assert len(ranks) == 2
    for rank in ranks:
        assert rank["held"] >= LEAST_BYTES
        assert 0.95 * rank["held"] < rank["peak"] <= 1.1 * rank["held"], rank
