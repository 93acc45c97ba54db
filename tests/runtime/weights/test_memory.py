"""Loading needs little more memory than the weights, whichever way they take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_checkpoint import v3_config, write_checkpoint

PROGRAM = Path(__file__).with_name("load_program.py")
LEAST_BYTES = 150 * 10**6


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint large enough that what the process itself needs does not count."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 1024, "moe_intermediate_size": 1024, "intermediate_size": 2048, "vocab_size": 4096}
    heads = {"q_lora_rank": 512, "kv_lora_rank": 128, "num_attention_heads": 8, "v_head_dim": 64}
    write_checkpoint(folder, v3_config(n_routed_experts=16, **sizes, **heads), fp8=True)
    return folder


@pytest.mark.parametrize(
    ("dtype", "residency"), [("bfloat16", "fp8"), ("float32", "fp8"), ("bfloat16", "compute"), ("float32", "compute")]
)
def test_the_peak_is_the_weights_and_a_tenth(dtype: str, residency: str, large: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(large), dtype, residency],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["read"] > LEAST_BYTES
    assert figures["held"] >= LEAST_BYTES
    assert 0.95 * figures["held"] < figures["peak"] <= 1.1 * figures["held"], figures
