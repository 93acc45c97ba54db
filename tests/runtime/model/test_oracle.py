"""Logits equal those of an independent implementation, for each architecture, precision and way to store weights.

The bounds are relative to the length of a token's logits, for the worst token: float32 on random checkpoints, BF16 on
checkpoints whose routing no rounding can flip. The oracle always computes in float32, from the same stored weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from torch import Tensor

from deepseek_runtime.model.model import DeepSeekV3Model
from oracle import oracle, relative_error
from steady_checkpoint import steady_tensors
from stepping import batch_of, block_table, logits_in_chunks, new_cache
from tiny_checkpoint import (
    YARN,
    Config,
    Scales,
    fp8_config,
    kimi_k2_config,
    moonlight_config,
    quantise_all,
    v2_config,
    v2_lite_config,
    v3_config,
    write_tensors,
)

BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
ReferenceLogits = Callable[..., Tensor]
MakeCheckpoint = Callable[..., Path]
Load = Callable[..., DeepSeekV3Model]

ARCHITECTURES = {
    "V3": v3_config(),
    "V2-Lite": v2_lite_config(),
    "V2": v2_config(),
    "Kimi-K2": kimi_k2_config(),
    "Moonlight": moonlight_config(),
}
each_architecture = pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)


def random_config(seed: int) -> Config:
    """Any shape that the family allows, none of them round."""

    def draw(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    generator = torch.Generator().manual_seed(seed)
    groups, heads, layers = draw(1, 2, 3), draw(1, 2, 3, 5), draw(1, 2, 4)
    return draw(v3_config, v2_config)(
        hidden_size=30 * heads,  # transformers' V2 wants it to divide by the heads
        intermediate_size=draw(17, 64, 130),
        moe_intermediate_size=draw(9, 32),
        num_hidden_layers=layers,
        first_k_dense_replace=draw(0, 1, layers),
        num_nextn_predict_layers=0,
        n_routed_experts=4 * groups,
        n_shared_experts=draw(1, 3),
        num_experts_per_tok=draw(1, 2, 4),
        n_group=groups,
        topk_group=draw(*range(1, groups + 1)),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=draw(None, 7, 50),
        kv_lora_rank=draw(6, 24),
        qk_nope_head_dim=draw(4, 8, 20),
        qk_rope_head_dim=draw(2, 6, 16),
        v_head_dim=draw(4, 11),
        rope_scaling=draw(None, YARN, {**YARN, "factor": 4, "beta_fast": 8, "mscale": 0.5, "mscale_all_dim": 0.8}),
    )


@each_architecture
def test_prefill_and_decode_equal_the_oracle_in_float32(
    config: Config,
    make_checkpoint: MakeCheckpoint,
    load_each: Load,
    reference_logits: ReferenceLogits,
    tokens: list[int],
) -> None:
    folder = make_checkpoint(config)
    got = logits_in_chunks(load_each(folder), tokens, [60])
    assert relative_error(got, reference_logits(folder, tokens)) < BOUNDS[torch.float32]


@pytest.mark.parametrize("seed", range(8))
def test_models_of_any_shape_equal_the_oracle(
    seed: int, make_checkpoint: MakeCheckpoint, load_each: Load, reference_logits: ReferenceLogits, tokens: list[int]
) -> None:
    folder = make_checkpoint(random_config(seed))
    got = logits_in_chunks(load_each(folder), tokens, [60])
    assert relative_error(got, reference_logits(folder, tokens)) < BOUNDS[torch.float32]


@each_architecture
@pytest.mark.parametrize("fp8", [False, True], ids=["BF16", "FP8"])
def test_prefill_and_decode_stay_near_the_oracle_in_bfloat16(
    config: Config, fp8: bool, tmp_path: Path, load_each: Load, reference_logits: ReferenceLogits, tokens: list[int]
) -> None:
    tensors = steady_tensors(config)
    if fp8:
        config, tensors = fp8_config(config), quantise_all(tensors)
    write_tensors(tmp_path, config, tensors)
    got = logits_in_chunks(load_each(tmp_path, torch.bfloat16), tokens, [60])
    assert got.dtype == torch.float32
    assert relative_error(got, reference_logits(tmp_path, tokens)) < BOUNDS[torch.bfloat16]


@pytest.mark.parametrize("scales", get_args(Scales))
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_fp8_equals_the_oracle_however_scales_are_stored(
    scales: Scales,
    dtype: torch.dtype,
    tmp_path: Path,
    load_each: Load,
    reference_logits: ReferenceLogits,
    tokens: list[int],
) -> None:
    """V3's arbitrary scales, and V3.1's powers of two as float32 and as bare exponents."""
    stored = quantise_all(steady_tensors(v3_config()), scales)
    assert stored["model.layers.0.self_attn.q_b_proj.weight"].shape == (192, 96), "ragged rows"
    write_tensors(tmp_path, fp8_config(v3_config(), scales), stored)
    got = logits_in_chunks(load_each(tmp_path, dtype), tokens, [60])
    assert relative_error(got, reference_logits(tmp_path, tokens)) < BOUNDS[dtype]


def test_a_checkpoint_that_transformers_wrote_equals_what_it_computes(
    tmp_path: Path, load: Load, tokens: list[int]
) -> None:
    """Its own names of the rope fields, its derived fields, and weights in the hub's layout."""
    fields = {name: value for name, value in v3_config().items() if name not in ("architectures", "model_type")}
    config = transformers.DeepseekV3Config(**{**fields, "num_nextn_predict_layers": 0, "initializer_range": 0.2})
    theirs = transformers.DeepseekV3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    assert "rope_parameters" in (tmp_path / "config.json").read_text()
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0]
    assert relative_error(logits_in_chunks(load(tmp_path), tokens, [60]), expected) < BOUNDS[torch.float32]


def test_contexts_far_beyond_the_original_one_equal_the_oracle(
    make_checkpoint: MakeCheckpoint, load: Load, reference_logits: ReferenceLogits
) -> None:
    """Positions up to forty times the original context of 64, of which every pair of dims has turned some."""
    scaling = {**YARN, "original_max_position_embeddings": 64}
    folder = make_checkpoint(
        v3_config(hidden_size=64, num_hidden_layers=2, rope_scaling=scaling, max_position_embeddings=2560)
    )
    tokens = torch.randint(2, 200, (2560,), generator=torch.Generator().manual_seed(2)).tolist()
    got = logits_in_chunks(load(folder), tokens, [1000, 1000, 520])
    assert relative_error(got[-60:], reference_logits(folder, tokens, last=60)) < BOUNDS[torch.float32]


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
        assert relative_error(logits, alone) < BOUNDS[torch.float32]


def test_an_idle_step_computes_nothing(v3_model: DeepSeekV3Model) -> None:
    cache = new_cache(v3_model, 16)
    hidden = v3_model.forward(batch_of([]), cache)
    assert hidden.shape == (0, v3_model.config.hidden_size)
    assert v3_model.logits(hidden).shape == (0, v3_model.config.vocab_size)


def test_a_token_caches_the_normalised_latent_and_the_rotated_key(
    v3_model: DeepSeekV3Model, v3_folder: Path, tokens: list[int]
) -> None:
    cache = new_cache(v3_model, 64)
    table = block_table(cache, 10)
    v3_model.forward(batch_of([(tokens[:10], 0, table)]), cache)
    reference = oracle(v3_folder).model
    with torch.inference_mode():
        first = reference.layers[0]
        normed = first.input_layernorm(reference.embed_tokens(torch.tensor(tokens[:10])))
        latent, key = first.self_attn.kv_a_proj_with_mqa(normed).split([64, 16], dim=-1)
        expected = first.self_attn.kv_a_layernorm(latent)
    rows = cache.layer(0)[table[0] * 16 : table[0] * 16 + 10]
    torch.testing.assert_close(rows[:, :64], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[:, 64:].norm(dim=-1), key.norm(dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[0, 64:], key[0], atol=1e-5, rtol=0)
    assert not torch.allclose(rows[9, 64:], key[9], atol=1e-2)
