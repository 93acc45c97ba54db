"""Case 15 on several ranks: two and four real processes over gloo compute the oracle's logits, every way."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from deepseek_runtime.model.model import DeepSeekV3Model
from oracle import relative_error
from stepping import batch_of, block_table, new_cache
from tiny_checkpoint import v3_config, write_checkpoint
from ways import WAYS

PROGRAM = Path(__file__).with_name("rank_program.py")
TOLERANCE = 1e-3


class Layout(NamedTuple):
    ranks: int
    attention: Literal["tensor", "data"]
    heads: int = 4

    def prompt_of(self, rank: int, prompt: list[int]) -> list[int]:
        """With data attention each rank has one of its own."""
        turn = rank if self.attention == "data" else 0
        return prompt[turn:] + prompt[:turn]


def run_ranks(layout: Layout, folder: Path, out: Path, tokens: list[int]) -> list[dict[str, Tensor]]:
    """What each of the processes wrote."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={layout.ranks}"]
    command = [*torchrun, str(PROGRAM), str(folder), str(out), layout.attention, *map(str, tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(layout.ranks)]


def drafts_of(model: DeepSeekV3Model, tokens: list[int]) -> Tensor:
    """The MTP layer's logits of all tokens but the last on one rank; the oracle judges those in test_mtp."""
    cache = new_cache(model, len(tokens))
    batch = batch_of([(tokens[:-1], 0, block_table(cache, len(tokens)))])
    return model.draft_logits(model.forward(batch, cache), torch.tensor(tokens[1:]), batch, cache)[0]


@pytest.mark.parametrize(
    "layout",
    [Layout(2, "tensor", heads=3), Layout(4, "tensor"), Layout(2, "data"), Layout(4, "data")],
    ids=["2 ranks whose heads do not divide", "4 ranks", "2 ranks with data attention", "4 ranks with data attention"],
)
def test_ranks_together_compute_the_oracle_s_logits_whichever_way_they_go(
    layout: Layout,
    tmp_path: Path,
    load: Callable[..., DeepSeekV3Model],
    reference_logits: Callable[..., Tensor],
    prompt: list[int],
) -> None:
    """Case 15 over FP8 blocks that ranks cut."""
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, v3_config(num_attention_heads=layout.heads, num_key_value_heads=layout.heads), fp8=True)
    results = run_ranks(layout, folder, tmp_path, prompt)
    model = load(folder)
    for rank, result in enumerate(results):
        own = layout.prompt_of(rank, prompt)
        expected = reference_logits(folder, own)
        for way in WAYS:
            assert relative_error(result[way], expected) < TOLERANCE, f"{way} on rank {rank}"
            assert result[way].argmax(dim=-1).equal(expected.argmax(dim=-1)), f"{way} on rank {rank}"
        assert relative_error(result["drafts"], drafts_of(model, own)) < TOLERANCE
    if layout.attention == "tensor":
        assert_same_bits(results)


def assert_same_bits(results: list[dict[str, Tensor]]) -> None:
    """Ranks that differ in a bit may choose different experts for the same token."""
    for name, expected in results[0].items():
        assert all(result[name].equal(expected) for result in results), f"{name} differ between ranks"
