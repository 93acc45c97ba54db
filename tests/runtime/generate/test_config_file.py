"""`--config FILE`: the hub's form or that of DeepSeek's own script, and nothing of it is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import ALONE, HELP_LINE, SUMS, generate, started

# The tutor's numbers in the names of DeepSeek's script.
SCRIPT: dict[str, Any] = {
    "vocab_size": 768,
    "dim": 256,
    "inter_dim": 768,
    "moe_inter_dim": 128,
    "n_layers": 4,
    "n_dense_layers": 1,
    "n_heads": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_activated_experts": 2,
    "n_expert_groups": 4,
    "n_limited_groups": 2,
    "score_func": "sigmoid",
    "route_scale": 2.5,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "dtype": "fp8",
}


def written(folder: Path, fields: dict[str, Any]) -> str:
    """A configuration file's path."""
    file = folder / "config_tutor.json"
    file.write_text(json.dumps(fields))
    return str(file)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_file_of_deepseeks_script_gives_the_same_answer(processes: str, tmp_path: Path) -> None:
    done = generate(SUMS[0], "--config", written(tmp_path, SCRIPT), "--nproc", processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout == generate(SUMS[0]).stdout


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_layers": 3}, "model.layers.3.mlp.experts.1.up_proj.weight: unexpected tensor"),
        ({"dim": 512}, "expected [768, 512] by config.json"),
        ({"swiglu_limit": 7.0}, "swiglu_limit is 7.0, a field that this runtime does not know"),
    ],
)
def test_a_file_of_another_model_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    done = generate("hi", "--config", written(tmp_path, {**SCRIPT, **changes}))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rank_that_is_killed_leaves_no_files_behind(tmp_path: Path) -> None:
    config, temporary = written(tmp_path, SCRIPT), tmp_path / "temporary"
    temporary.mkdir()
    with started([*ALONE, "--interactive", "--config", config], TMPDIR=str(temporary)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == HELP_LINE
        process.kill()
        process.wait()
    assert list(temporary.iterdir()) == []
