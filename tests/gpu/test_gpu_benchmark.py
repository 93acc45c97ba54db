"""The arithmetic of the GPU benchmark, which needs no GPU; and the benchmark itself where there is none."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", REPOSITORY / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_one_expert_has_the_published_size(bench) -> None:
    config = bench.v3_layers(1)
    expert = [p for p in bench.parameters(config) if p.expert == 0]
    assert sum(bench.stored_bytes(p, (128, 128)) for p in expert) == 44_040_192 + 4 * 3 * 16 * 56


def test_a_single_token_visits_eight_experts_and_many_visit_all(bench) -> None:
    assert bench.visited_experts(256, 8, 1) == pytest.approx(8)
    assert bench.visited_experts(256, 8, 64) == pytest.approx(222.4, abs=0.1)
    assert bench.visited_experts(256, 8, 10_000) == pytest.approx(256)


def test_cached_rows_and_visited_experts_are_what_grows_with_the_batch(bench) -> None:
    config = bench.v3_layers(1)
    expert = 44_040_192 + 4 * 3 * 16 * 56
    short, long = bench.layer_bytes(config, 1, 1000), bench.layer_bytes(config, 1, 2000)
    assert long - short == 1000 * 576 * 2
    assert bench.layer_bytes(config, 8, 0) - bench.layer_bytes(config, 1, 0) == pytest.approx(
        (bench.visited_experts(256, 8, 8) - 8) * expert
    )
    # Attention in FP8 with kv_b in bf16, router in float32, shared expert: model-spec.md's counts.
    attention, router = 187_105_280 + 16_777_216, 256 * 7168 * 4
    assert bench.layer_bytes(config, 1, 0) == pytest.approx(attention + router + 9 * expert, rel=1e-3)


def test_an_80_gb_gpu_holds_six_layers(bench) -> None:
    assert bench.layers_that_fit(80e9 * 0.9) == 6
    assert bench.layers_that_fit(5e9) == 0


def test_weights_have_the_counted_size_and_the_model_runs_on_them(bench, monkeypatch) -> None:
    small = {"hidden_size": 256, "moe_intermediate_size": 128, "n_routed_experts": 8, "num_attention_heads": 2}
    small |= {"q_lora_rank": 128, "kv_lora_rank": 64, "topk_group": 8}
    monkeypatch.setattr(bench, "V3", bench.V3 | small)
    config, device = bench.v3_layers(2), torch.device("cpu")
    weights = bench.random_weights(config, device, fnuz=False)
    assert sum(weight.nbytes for weight in weights.values()) == bench.weight_bytes(config)
    model = bench.DeepSeekV3Model(bench.Shard.of(config, 0, 1), weights, bench.Group(device), bench.TorchKernels())
    cache = bench.LatentCache.create(config, 5, bench.BLOCK_SIZE, device, torch.bfloat16)
    assert model.forward(bench.prompt_batch(10, device), cache).isfinite().all()
    assert model.forward(bench.decode_batch(2, 100, device), cache).shape == (2, 256)


def test_the_section_is_replaced_and_nothing_else(bench) -> None:
    page = bench.insert("# Results\n\nother\n", "first")
    assert page.startswith("# Results\n\nother\n\n" + bench.BEGIN)
    again = bench.insert(page + "\n## behind\n", "second")
    assert "first" not in again
    assert again.endswith(bench.END + "\n\n## behind\n")
    assert bench.insert(again, "second") == again


def test_without_a_gpu_it_says_so_and_writes_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    results = (REPOSITORY / "benchmarks/RESULTS.md").read_bytes()
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": "runtime"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "no CUDA or ROCm device" in ran.stderr
    assert (REPOSITORY / "benchmarks/RESULTS.md").read_bytes() == results
