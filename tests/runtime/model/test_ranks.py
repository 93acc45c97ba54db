"""Two and four real processes over gloo compute what one does, and all of them the same bits."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.model.model import DeepSeekV3Model
from stepping import batch_of, block_table, logits_in_chunks, new_cache
from tiny_checkpoint import Config, v3_config, write_checkpoint

PROGRAM = Path(__file__).with_name("rank_program.py")


def run_ranks(ranks: int, folder: Path, out: Path, tokens: list[int]) -> list[dict[str, Tensor]]:
    """What each of the processes wrote."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*torchrun, str(PROGRAM), str(folder), str(out), *map(str, tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(ranks)]


def assert_same_bits(results: list[dict[str, Tensor]]) -> None:
    """Ranks that differ in a bit may choose different experts for a token."""
    for name in ("logits", "drafts"):
        assert all(torch.equal(result[name], results[0][name]) for result in results[1:]), (
            f"{name} differ between ranks"
        )


@pytest.mark.parametrize(
    ("ranks", "config", "fp8"),
    [(2, v3_config(num_attention_heads=3, num_key_value_heads=3), False), (4, v3_config(), True)],
    ids=["2 ranks with heads that do not divide", "4 ranks that cut FP8 blocks"],
)
def test_ranks_together_compute_what_one_computes(
    ranks: int, config: Config, fp8: bool, tmp_path: Path, load: Callable[[Path], DeepSeekV3Model], tokens: list[int]
) -> None:
    write_checkpoint(tmp_path / "checkpoint", config, fp8=fp8)
    model = load(tmp_path / "checkpoint")
    results = run_ranks(ranks, tmp_path / "checkpoint", tmp_path, tokens)
    for name in ("logits", "drafts"):
        assert all(torch.equal(result[name], results[0][name]) for result in results[1:]), (
            f"{name} differ between ranks"
        )
    torch.testing.assert_close(results[0]["logits"], logits_in_chunks(model, tokens, [70]), atol=1e-3, rtol=0)
    cache = new_cache(model, 70)
    batch = batch_of([(tokens[:-1], 0, block_table(cache, 70))])
    drafts, _ = model.draft_logits(model.forward(batch, cache), torch.tensor(tokens[1:]), batch, cache)
    torch.testing.assert_close(results[0]["drafts"], drafts, atol=1e-3, rtol=0)


def test_two_ranks_equal_the_independent_reference(
    tmp_path: Path, v3_folder: Path, reference_logits: Callable[..., Tensor], tokens: list[int]
) -> None:
    results = run_ranks(2, v3_folder, tmp_path, tokens)
    assert_same_bits(results)
    torch.testing.assert_close(results[0]["logits"], reference_logits(v3_folder, tokens), atol=1e-3, rtol=0)
