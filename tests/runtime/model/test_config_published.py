"""The files that are published are accepted as they are, and so is what transformers and DeepSeek's script write."""

from typing import Any

import pytest
import transformers

from deepseek_runtime.model.config import ConfigError, RopeConfig, parse_config
from tiny_checkpoint import v2_config, v3_config

LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
LIBRARY = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "ep_size": 1,
    "pretraining_tp": 1,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "moe_layer_freq": 1,
}


def auto_map(version: str) -> dict[str, str]:
    """The hub's pointers to DeepSeek's own code."""
    return {
        "AutoConfig": f"configuration_deepseek.Deepseek{version}Config",
        "AutoModel": f"modeling_deepseek.Deepseek{version}Model",
        "AutoModelForCausalLM": f"modeling_deepseek.Deepseek{version}ForCausalLM",
    }


FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
V3: dict[str, Any] = {
    **LIBRARY,
    **LATENT,
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": auto_map("V3"),
    "model_type": "deepseek_v3",
    "transformers_version": "4.33.1",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "quantization_config": FP8,
}
V2_LITE: dict[str, Any] = {
    **LIBRARY,
    **LATENT,
    "architectures": ["DeepseekV2ForCausalLM"],
    "auto_map": auto_map("V2"),
    "model_type": "deepseek_v2",
    "transformers_version": "4.33.1",
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "first_k_dense_replace": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}
KIMI_K2: dict[str, Any] = {
    **V3,
    "model_type": "kimi_k2",
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "vocab_size": 163840,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "max_position_embeddings": 131072,
    "rope_theta": 50000.0,
    "rope_scaling": {**YARN, "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
}
MOONLIGHT: dict[str, Any] = {
    **V2_LITE,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.446,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 50000.0,
    "rope_scaling": None,
}
# What R1 leaves out, V3.1 adds, and tools that publish copies write beside it.
R1 = {name: value for name, value in V3.items() if name not in ("aux_loss_alpha", "seq_aux", "pretraining_tp")}
V3_1 = {**V3, "quantization_config": {**FP8, "scale_fmt": "ue8m0"}}
COPY = {**V3, "unsloth_fixed": True, "dtype": "bfloat16", "_name_or_path": "deepseek-ai/DeepSeek-V3"}


@pytest.mark.parametrize(
    ("raw", "layers", "experts", "mtp"),
    [
        (V3, 61, 256, 1),
        (R1, 61, 256, 1),
        (V3_1, 61, 256, 1),
        (COPY, 61, 256, 1),
        (V2_LITE, 27, 64, 0),
        (KIMI_K2, 61, 384, 0),
        (MOONLIGHT, 27, 64, 0),
    ],
    ids=["V3", "R1", "V3.1", "a copy of V3", "V2-Lite", "Kimi-K2", "Moonlight"],
)
def test_a_published_file_is_followed(raw: dict[str, Any], layers: int, experts: int, mtp: int) -> None:
    config = parse_config(raw)
    assert (config.num_layers, config.router.experts, config.num_mtp_layers) == (layers, experts, mtp)
    assert config.power_of_two_scales is (raw is V3_1)


@pytest.mark.parametrize(
    ("kind", "raw"), [(transformers.DeepseekV3Config, v3_config()), (transformers.DeepseekV2Config, v2_config())]
)
def test_what_transformers_writes_is_followed_as_what_it_was_made_of(kind: Any, raw: dict[str, Any]) -> None:
    own = {name: value for name, value in raw.items() if name not in ("architectures", "model_type")}
    written = {**kind(**own).to_dict(), "architectures": raw["architectures"]}
    assert parse_config(written) == parse_config(raw)


SCRIPT_671B = {
    **LATENT,
    "vocab_size": 129280,
    "dim": 7168,
    "inter_dim": 18432,
    "moe_inter_dim": 2048,
    "n_layers": 61,
    "n_dense_layers": 3,
    "n_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "n_activated_experts": 8,
    "n_expert_groups": 8,
    "n_limited_groups": 4,
    "route_scale": 2.5,
    "score_func": "sigmoid",
    "q_lora_rank": 1536,
    "dtype": "fp8",
}
SCRIPT_16B = {"vocab_size": 102400, "dim": 2048, "n_layers": 27, "route_scale": 1.0, "mscale": 0.707}


@pytest.mark.parametrize(
    ("script", "hub"),
    [
        (SCRIPT_671B, {**V3, "num_nextn_predict_layers": 0}),
        ({**SCRIPT_671B, "scale_fmt": "ue8m0"}, {**V3_1, "num_nextn_predict_layers": 0}),
        (SCRIPT_16B, V2_LITE),
    ],
    ids=["671B", "V3.1", "16B"],
)
def test_the_file_of_deepseeks_own_script_means_the_same_model(script: dict[str, Any], hub: dict[str, Any]) -> None:
    assert parse_config(script) == parse_config(hub)


def test_groups_of_the_script_count_by_their_best_expert() -> None:
    router = parse_config({**SCRIPT_16B, "n_expert_groups": 8, "n_limited_groups": 3}).router
    assert (router.groups, router.chosen_groups, router.group_score) == (8, 3, "max")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"swiglu_limit": 10.0}, "config.json: swiglu_limit is 10.0, a field"),
        ({"score_func": "sqrtsoftplus"}, 'config.json: score_func is "sqrtsoftplus", this runtime computes only'),
        ({"dtype": "fp4"}, 'config.json: dtype is "fp4", this runtime computes only "bf16" or "fp8"'),
        ({"dim": "7168"}, 'config.json, from the names of DeepSeek\'s script: hidden_size is "7168", expected'),
    ],
)
def test_what_the_script_would_not_compute_like_this_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**SCRIPT_671B, **changes})
    assert str(caught.value).startswith(said)


def test_the_script_scales_scores_by_its_one_mscale() -> None:
    expected = RopeConfig(10000.0, 40.0, 4096, 32.0, 1.0, mscale=0.707, mscale_all_dim=0.707)
    assert parse_config(SCRIPT_16B).rope == expected
