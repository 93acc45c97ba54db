"""The fields of `config.json`: which are followed, which may have one value only, and which change no logit.

What stands in none of these tables is refused by its name: a field that this runtime has never heard of may change the
maths. Sources: the files of published DeepSeek, Kimi and Moonlight models, and transformers' configuration classes.
"""

from __future__ import annotations

from typing import Literal

from deepseek_runtime.model.fields import Json, Values

Family = Literal["v3", "v2"]

# What the hub's own configuration classes assume where a field is absent. The MTP layer is no part of a model's
# answer, so without a word about it there is none.
DEFAULTS: dict[Family, Json] = {
    "v3": {
        "q_lora_rank": 1536,
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
    "v2": {
        "q_lora_rank": 1536,
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
}

FOLLOWED = {
    *("architectures", "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("intermediate_size", "moe_intermediate_size", "first_k_dense_replace", "num_nextn_predict_layers"),
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group", "topk_method"),
    *("scoring_func", "norm_topk_prob", "routed_scaling_factor", "rms_norm_eps", "max_position_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "quantization_config"),
}

# The only values computed here of fields that change the maths; None stands for an absent field or null.
COMPUTED: dict[str, Values] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "moe_layer_freq": (1, None),
    "mlp_layer_types": (None,),
    "layer_types": (None,),
    "num_nextn_predict_layers": (0, 1, None),
    "index_topk": (None,),
    "sliding_window": (None,),
    "rope_interleave": (True, None),
    "partial_rotary_factor": (1, None),
    "original_max_position_embeddings": (None,),  # transformers lets it overrule the one in rope_scaling
}
COMPUTED_BY_FAMILY: dict[Family, dict[str, Values]] = {
    "v3": {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    # With norm_topk_prob DeepSeek's own code for V2 normalises and leaves routed_scaling_factor out, vLLM does both,
    # transformers scales and ignores the field. No published checkpoint sets it, so none of the three can be checked.
    "v2": {
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (False, None),
    },
}

_SIZES_THAT_FOLLOW = {"head_dim", "qk_head_dim", "num_key_value_heads"}
_TRAINING = {
    *("attention_dropout", "hidden_dropout", "initializer_range", "aux_loss_alpha", "router_aux_loss_coef", "seq_aux"),
    *("output_router_logits", "ep_size", "pretraining_tp", "gradient_checkpointing", "chunk_size_feed_forward"),
}
_TOKENS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id", "tokenizer_class", "prefix"),
}
_LIBRARY = {
    *("transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "auto_map", "torch_dtype", "dtype"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "torchscript", "is_decoder"),
    *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "id2label", "label2id"),
    *("problem_type", "finetuning_task", "task_specific_params", "unsloth_fixed", "unsloth_version"),
}
_GENERATION = {
    *("max_length", "min_length", "do_sample", "early_stopping", "temperature", "top_k", "top_p", "typical_p"),
    *("num_beams", "num_beam_groups", "diversity_penalty", "repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
    *("output_scores", "return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens"),
}
HARMLESS = _SIZES_THAT_FOLLOW | _TRAINING | _TOKENS | _LIBRARY | _GENERATION
"""Fields that change no logit: sizes that follow from others, training, tokens, the library's own, defaults of
generation that old versions left here."""

COMPUTED_ROPE: dict[str, Values] = {
    "truncate": (True, None),
    "attention_factor": (None,),
    "partial_rotary_factor": (1, None),
}
FOLLOWED_ROPE = {"type", "rope_type", "rope_theta"}
FOLLOWED_YARN = FOLLOWED_ROPE | {
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
}

COMPUTED_FP8: dict[str, Values] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),
    "scale_fmt": ("ue8m0", "float", None),
    "expert_dtype": ("fp8", None),
}
# Layers that stay unquantised need no field: each tensor's own type tells.
KNOWN_FP8 = {"weight_block_size", "modules_to_not_convert", "modules_to_convert", "ignored_layers"}
