"""The configuration file of DeepSeek's own script (`dim`, `n_layers`, …) in the hub's names.

The script's file is complete: what it leaves out are the script's defaults, those of the 16B model.
"""

from __future__ import annotations

from deepseek_runtime.model.fields import Fields, Json

_NAMES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
    "score_func": "scoring_func",
    "route_scale": "routed_scaling_factor",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "rope_theta": "rope_theta",
}
_ROPE_NAMES = {
    "original_seq_len": "original_max_position_embeddings",
    "rope_factor": "factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}
_DEFAULTS: Json = {
    "dtype": "bf16",
    "vocab_size": 102400,
    "dim": 2048,
    "inter_dim": 10944,
    "moe_inter_dim": 1408,
    "n_layers": 27,
    "n_dense_layers": 1,
    "n_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "n_activated_experts": 6,
    "n_expert_groups": 1,
    "n_limited_groups": 1,
    "score_func": "softmax",
    "route_scale": 1.0,
    "q_lora_rank": 0,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "original_seq_len": 4096,
    "rope_theta": 10000.0,
    "rope_factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
}
_OWN_LIMITS = {"max_batch_size", "max_seq_len"}
"""Sizes of the script's cache, which say nothing of the model."""


def is_script_config(fields: Fields) -> bool:
    """Whether a file has the script's names rather than the hub's."""
    hub = any(fields.get(name) for name in ("architectures", "model_type", "hidden_size"))
    return not hub and fields.get("dim") is not None and fields.get("n_layers") is not None


def translate(given: Fields) -> Fields:
    """The same model in the hub's names; ConfigError for what the script does not know."""
    fields = given.with_defaults(_DEFAULTS)
    fields.demand({"dtype": ("bf16", "fp8"), "score_func": ("sigmoid", "softmax"), "scale_fmt": ("ue8m0", None)})
    fields.allow(_DEFAULTS.keys() | _OWN_LIMITS | {"scale_fmt"})
    return Fields(
        {
            **{hub: fields.get(script) for script, hub in _NAMES.items()},
            **_router(fields),
            "rope_scaling": _yarn(fields),
            "max_position_embeddings": int(fields.whole("original_seq_len") * fields.real("rope_factor")),
            "quantization_config": _fp8(fields) if fields.get("dtype") == "fp8" else None,
        },
        "config.json, from the names of DeepSeek's script",
    )


def _router(fields: Fields) -> Json:
    """Sigmoid scores come with the correction bias and are normalised, softmax scores with neither."""
    if fields.get("score_func") == "sigmoid":
        return {"model_type": "deepseek_v3", "topk_method": "noaux_tc", "norm_topk_prob": True}
    grouped = fields.whole("n_expert_groups") > 1
    method = "group_limited_greedy" if grouped else "greedy"
    return {"model_type": "deepseek_v2", "topk_method": method, "norm_topk_prob": False}


def _yarn(fields: Fields) -> Json:
    """The script knows one mscale, and scales scores by it: the hub's `mscale_all_dim`, with tables unscaled."""
    names = {hub: fields.get(script) for script, hub in _ROPE_NAMES.items()}
    return {"type": "yarn", **names, "mscale": fields.get("mscale"), "mscale_all_dim": fields.get("mscale")}


def _fp8(fields: Fields) -> Json:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "scale_fmt": fields.get("scale_fmt"),
    }
