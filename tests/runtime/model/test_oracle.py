"""Logits equal an independent float32 implementation, for each architecture and every way to reach a position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_runtime.model.model import DeepSeekV3Model
from stepping import batch_of, block_table, logits_in_chunks, new_cache
from tiny_checkpoint import Config, dequantise_all, v2_lite_config, v3_config, write_checkpoint, write_tensors

TOLERANCE = 1e-3
ReferenceLogits = Callable[..., Tensor]
Load = Callable[[Path], DeepSeekV3Model]

PLAIN_ROPE = {"rope_scaling": None, "rope_theta": 50000.0}
ARCHITECTURES = {
    "V3": v3_config(),
    "V2-Lite": v2_lite_config(),
    "V2": v2_lite_config(
        q_lora_rank=96, n_group=4, topk_group=2, topk_method="group_limited_greedy", routed_scaling_factor=16.0
    ),
    "Moonlight": v3_config(n_group=1, topk_group=1, q_lora_rank=None, num_nextn_predict_layers=0, **PLAIN_ROPE),
    "Kimi-K2": v3_config(n_group=1, topk_group=1, n_routed_experts=12, routed_scaling_factor=2.827),
}


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_prefill_and_decode_equal_the_reference(
    config: Config,
    make_checkpoint: Callable[..., Path],
    load: Load,
    reference_logits: ReferenceLogits,
    tokens: list[int],
) -> None:
    folder = make_checkpoint(config)
    got = logits_in_chunks(load(folder), tokens, [60])
    torch.testing.assert_close(got, reference_logits(folder, tokens), atol=TOLERANCE, rtol=0)


def test_new_rope_fields_mean_the_same_as_the_old(
    make_checkpoint: Callable[..., Path], load: Load, tokens: list[int]
) -> None:
    old = v3_config()
    new = {name: value for name, value in old.items() if name not in ("rope_scaling", "rope_theta")}
    scaling = {name: value for name, value in old["rope_scaling"].items() if name != "type"}
    new["rope_parameters"] = {**scaling, "rope_type": "yarn", "rope_theta": 10000}
    got = [logits_in_chunks(load(make_checkpoint(config)), tokens, [70]) for config in (old, new)]
    assert torch.equal(*got)


def test_positions_beyond_the_original_context_equal_the_reference(
    make_checkpoint: Callable[..., Path], load: Load, reference_logits: ReferenceLogits
) -> None:
    folder = make_checkpoint(
        v3_config(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    )
    tokens = torch.randint(2, 200, (4200,), generator=torch.Generator().manual_seed(2)).tolist()
    got = logits_in_chunks(load(folder), tokens, [1500, 1500, 1180])
    expected = reference_logits(folder, tokens, last=60)
    torch.testing.assert_close(got[-60:], expected, atol=TOLERANCE, rtol=0)


def test_an_fp8_checkpoint_equals_the_reference_on_its_dequantised_twin(
    tmp_path: Path, load: Load, reference_logits: ReferenceLogits, tokens: list[int]
) -> None:
    config = v3_config()
    stored = write_checkpoint(tmp_path / "fp8", config, fp8=True)
    assert stored["model.layers.0.self_attn.q_b_proj.weight"].shape == (192, 96), "ragged rows"
    write_tensors(tmp_path / "plain", config, dequantise_all(stored))
    got = logits_in_chunks(load(tmp_path / "fp8"), tokens, [60])
    torch.testing.assert_close(got, reference_logits(tmp_path / "plain", tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 3 + [7] * 9, [64], [7] * 10, [3, 33, 9, 25]], ids=str)
def test_chunks_of_any_size_give_what_one_prefill_gives(
    chunks: list[int], v3_model: DeepSeekV3Model, tokens: list[int]
) -> None:
    whole = logits_in_chunks(v3_model, tokens, [70])
    torch.testing.assert_close(logits_in_chunks(v3_model, tokens, chunks), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("absorb_up_to", [0, 1000], ids=["always expanded", "always absorbed"])
def test_both_forms_of_attention_give_the_same(
    absorb_up_to: int, v3_folder: Path, load: Load, reference_logits: ReferenceLogits, tokens: list[int]
) -> None:
    model = load(v3_folder)
    model.absorb_up_to = absorb_up_to
    got = logits_in_chunks(model, tokens, [20, 1, 30, 9])
    torch.testing.assert_close(got, reference_logits(v3_folder, tokens), atol=TOLERANCE, rtol=0)


def test_sequences_of_one_step_do_not_touch_each_other(v3_model: DeepSeekV3Model, tokens: list[int]) -> None:
    """Prefill, verification of three tokens, a chunk behind a cached prefix and decode, packed in one step."""
    cached, new = [0, 20, 30, 40], [25, 3, 12, 1]
    cache = new_cache(v3_model, 4 * 64)
    tables = [block_table(cache, 64, first=4 * i, seed=i) for i in range(4)]
    texts = [tokens[i:] + tokens[:i] for i in range(4)]
    prefixes = [(text[:c], 0, table) for text, c, table in zip(texts, cached, tables, strict=True)]
    v3_model.forward(batch_of(prefixes), cache)
    parts = zip(texts, cached, new, tables, strict=True)
    mixed = batch_of([(text[c : c + n], c, table) for text, c, n, table in parts])
    got = v3_model.logits(v3_model.forward(mixed, cache)).split(new)
    for text, c, n, logits in zip(texts, cached, new, got, strict=True):
        alone = logits_in_chunks(v3_model, text[: c + n], [c + n])[-n:]
        torch.testing.assert_close(logits, alone, atol=TOLERANCE, rtol=0)


def test_an_idle_step_computes_nothing(v3_model: DeepSeekV3Model) -> None:
    cache = new_cache(v3_model, 16)
    hidden = v3_model.forward(batch_of([]), cache)
    assert hidden.shape == (0, v3_model.config.hidden_size)
    assert v3_model.logits(hidden).shape == (0, v3_model.config.vocab_size)


def test_a_token_caches_the_normalised_latent_and_the_rotated_key(
    v3_model: DeepSeekV3Model, v3_folder: Path, reference: Callable[[Path], Any], tokens: list[int]
) -> None:
    cache = new_cache(v3_model, 64)
    table = block_table(cache, 10)
    v3_model.forward(batch_of([(tokens[:10], 0, table)]), cache)
    oracle = reference(v3_folder).model
    with torch.inference_mode():
        first = oracle.layers[0]
        normed = first.input_layernorm(oracle.embed_tokens(torch.tensor(tokens[:10])))
        latent, key = first.self_attn.kv_a_proj_with_mqa(normed).split([64, 16], dim=-1)
        expected = first.self_attn.kv_a_layernorm(latent)
    rows = cache.layer(0)[table[0] * 16 : table[0] * 16 + 10]
    torch.testing.assert_close(rows[:, :64], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[:, 64:].norm(dim=-1), key.norm(dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[0, 64:], key[0], atol=1e-5, rtol=0)
    assert not torch.allclose(rows[9, 64:], key[9], atol=1e-2)


def test_bfloat16_stays_near_float32(v3_folder: Path, v3_model: DeepSeekV3Model, tokens: list[int]) -> None:
    from deepseek_runtime.dist.group import Group
    from deepseek_runtime.weights.load import load_model

    rounded = load_model(v3_folder, Group(), device=torch.device("cpu"), dtype=torch.bfloat16)
    exact = logits_in_chunks(v3_model, tokens, [60])
    got = logits_in_chunks(rounded, tokens, [60])
    assert got.dtype == torch.float32
    # A flipped expert moves a few tokens further, so the median over tokens is judged.
    relative = ((got - exact).norm(dim=-1) / exact.norm(dim=-1)).median()
    assert relative < 2e-2
