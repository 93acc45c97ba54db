"""The MTP layer's own cache: a layer that knows the next token only by looking it up there drafts right to the last."""

import pytest
import torch

from deepseek_runtime.engine.speculation import Speculation
from deepseek_runtime.model.model import DeepSeekV3Model
from tiny_checkpoint import Config, Tensors, v3_config, write_tensors

from .test_speculation import Rig, cycling_tensors, load

WORDS = 32
"""Tokens of the model's language, as many as a head has dimensions. Each is followed by the next in a circle."""


def remembering_tensors(config: Config) -> Tensors:
    """A model whose next token is a function of the current one, and an MTP layer that must look it up.

    Words are the axes of the first dimensions. The layer's first head is an induction head: it seeks the position where
    the next token once was the current one, and reads there what followed. Nothing else in the layer knows.
    """
    tensors = cycling_tensors(config, "hidden")
    mtp, hidden = f"model.layers.{config['num_hidden_layers']}", config["hidden_size"]
    axes = torch.eye(WORDS, dtype=torch.bfloat16)
    first, second, third = (slice(n * WORDS, (n + 1) * WORDS) for n in range(3))

    def wire(name: str, *blocks: tuple[slice, slice, torch.Tensor]) -> None:
        tensors[name] = torch.zeros_like(tensors[name])
        for rows, columns, values in blocks:
            tensors[name][rows, columns] = values

    for name in ("model.norm.weight", f"{mtp}.shared_head.norm.weight"):
        tensors[name] = torch.ones_like(tensors[name])
    wire("model.embed_tokens.weight", (first, first, axes))
    wire("lm_head.weight", (first, first, axes.roll(1, dims=0) * 10))
    wire(f"{mtp}.eh_proj.weight", (second, first, axes), (third, slice(hidden, hidden + WORDS), axes))
    wire(f"{mtp}.self_attn.q_a_proj.weight", (first, second, axes))
    wire(f"{mtp}.self_attn.q_b_proj.weight", (first, first, axes * 4))
    wire(f"{mtp}.self_attn.kv_a_proj_with_mqa.weight", (first, third, axes), (second, second, axes))
    wire(f"{mtp}.self_attn.kv_b_proj.weight", (first, first, axes), (second, second, axes.roll(-1, dims=0)))
    wire(f"{mtp}.self_attn.o_proj.weight", (first, first, axes * 1000))
    return tensors


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> DeepSeekV3Model:
    folder, config = tmp_path_factory.mktemp("remembering"), v3_config()
    write_tensors(folder, config, remembering_tensors(config))
    return load(folder)


def words(first: int, count: int) -> list[int]:
    return [(first + i) % WORDS for i in range(count)]


PROMPTS = [words(3, WORDS + 1), words(20, WORDS + 14), words(9, WORDS + 29)]
"""Each word has been followed once at least, and most of them no more than that."""


@pytest.mark.parametrize("budget", [7, 64])
@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_every_draft_is_remembered_behind_chunks_and_cached_prefixes(
    remembering: DeepSeekV3Model, drafts: int, budget: int
) -> None:
    rig = Rig(remembering, drafts, budget=budget)
    expected = [words(prompt[-1] + 1, 60) for prompt in PROMPTS]
    assert rig.run(PROMPTS) == expected
    assert rig.pool.hits == 0
    assert rig.run(PROMPTS) == expected
    assert rig.pool.hits == sum((len(prompt) - 1) // 16 * 16 for prompt in PROMPTS)
    assert rig.acceptance == [1.0] * drafts


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_what_was_said_is_remembered_like_what_was_read(remembering: DeepSeekV3Model, drafts: int) -> None:
    """While a conversation is new every draft is wrong; what is kept of it is each word once, as it was said."""
    rig = Rig(remembering, drafts)
    rig.run([words(3, 3)], max_tokens=40)
    rig.runner.speculation = Speculation.of(drafts)
    assert rig.run([words(3, 43)], max_tokens=20) == [words(46, 20)]
    assert rig.pool.hits == WORDS
    assert rig.acceptance == [1.0] * drafts


def test_a_layer_that_remembers_nothing_drafts_wrong(remembering: DeepSeekV3Model) -> None:
    rig = Rig(remembering, drafts=1)
    assert rig.run([words(5, 3)], max_tokens=WORDS - 4) == [words(8, WORDS - 4)]
    assert rig.acceptance[0] < 0.2
