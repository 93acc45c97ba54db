"""What changes the maths and is not built is refused by its name; the rest is read or ignored."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_runtime.model.config import ConfigError, ModelConfig, load_config, parse_config
from tiny_checkpoint import QUANTISATION, YARN, kimi_k2_config, v2_config, v2_lite_config, v3_config


def yarn(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": {**YARN, **changes}}


def fp8(**changes: Any) -> dict[str, Any]:
    return {"quantization_config": {**QUANTISATION, **changes}}


def refusal(raw: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is LlamaForCausalLM, known are DeepseekV3ForCausalLM"),
        ({"architectures": ["DeepseekV32ForCausalLM"]}, "architectures is DeepseekV32ForCausalLM"),
        ({"architectures": [], "model_type": "llama"}, "without architectures, model_type is llama, known are"),
        (
            {"architectures": ["DeepseekV3ForCausalLM", "LlamaForCausalLM"]},
            'architectures is ["DeepseekV3ForCausalLM",',
        ),
        ({"model_type": "deepseek_v32"}, "model_type is deepseek_v32, which contradicts architectures Deepseek"),
        ({"model_type": "deepseek_v2"}, "model_type is deepseek_v2, which contradicts architectures Deepseek"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ({"mlp_layer_types": ["dense", "sparse", "sparse"]}, "mlp_layer_types is"),
        ({"num_nextn_predict_layers": 3}, "num_nextn_predict_layers is 3"),
        ({"index_topk": 2048}, "index_topk is 2048"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"rope_interleave": False}, "rope_interleave is false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"original_max_position_embeddings": 4096}, "original_max_position_embeddings is 4096"),
        ({"scoring_func": "softmax"}, 'scoring_func is "softmax", this runtime computes only "sigmoid"'),
        ({"topk_method": "greedy"}, 'topk_method is "greedy", this runtime computes only "noaux_tc"'),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type is linear"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_parameters.type is longrope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters and rope_scaling disagree"),
        (yarn(truncate=False), "rope_scaling.truncate is false"),
        (yarn(attention_factor=1.2), "rope_scaling.attention_factor is 1.2"),
        (yarn(partial_rotary_factor=0.5), "rope_scaling.partial_rotary_factor is 0.5"),
        (yarn(mscale=None), "rope_scaling.mscale is null and mscale_all_dim is 1.0"),
        (yarn(mscale=0.707, mscale_all_dim=0), "rope_scaling.mscale is 0.707 and mscale_all_dim is 0"),
        (yarn(mscale=0, mscale_all_dim=0), "rope_scaling.mscale is 0 and mscale_all_dim is 0"),
        (yarn(factor=None), "rope_scaling.factor is missing"),
        (fp8(quant_method="awq"), 'quantization_config.quant_method is "awq"'),
        (fp8(fmt="e5m2"), 'quantization_config.fmt is "e5m2"'),
        (fp8(activation_scheme="static"), 'quantization_config.activation_scheme is "static"'),
        (fp8(scale_fmt="e4m3"), 'quantization_config.scale_fmt is "e4m3"'),
        (fp8(weight_block_size=None), "quantization_config.weight_block_size is null"),
        ({"rope_theta": 1, "rope_scaling": None}, "rope_theta is 1, expected more than 1"),
        ({"rope_theta": 1}, "rope_scaling.rope_theta is 1, expected more than 1"),
        (yarn(rope_theta=50000), "rope_scaling.rope_theta is 50000, but config.json: rope_theta is 10000"),
        (yarn(rope_type="default"), "rope_scaling.type is default and yarn, known are"),
        ({"n_group": 3}, "n_group 3 does not divide n_routed_experts 8"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 of the 4 experts"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim is 15, but dims are rotated in pairs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_maths_that_is_not_built_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    assert f"config.json: {said}" in refusal(v3_config(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"use_qk_norm": True}, "use_qk_norm is true"),
        ({"swiglu_limit": 10}, "swiglu_limit is 10"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
        ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
        ({"expert_dtype": "fp4"}, 'expert_dtype is "fp4"'),
        ({"pruned_heads": {"0": [1]}}, 'pruned_heads is {"0": [1]}'),
        (yarn(llama_4_scaling_beta=0.1), "rope_scaling.llama_4_scaling_beta is 0.1"),
        ({"rope_scaling": None, "rope_parameters": {"full_attention": YARN}}, "rope_parameters.full_attention is {"),
        ({"rope_scaling": {"factor": 40}}, "rope_scaling.factor is 40"),
        (fp8(weight_dtype="int4"), 'quantization_config.weight_dtype is "int4"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_that_nobody_here_has_heard_of_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    message = refusal(v3_config(**changes))
    assert message.startswith(f"config.json: {said}")
    assert "a field that this runtime does not know" in message


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_an_unknown_field_without_a_value_is_passed_over(value: object) -> None:
    assert parse_config(v3_config(future_field=value)) == parse_config(v3_config())


def test_a_long_value_is_not_repeated_in_full() -> None:
    assert len(refusal(v3_config(future_field=list(range(1000))))) < 300


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob is true, this runtime computes only false"),
        ({"scoring_func": "sigmoid"}, 'scoring_func is "sigmoid", this runtime computes only "softmax"'),
        ({"topk_method": "noaux_tc"}, 'topk_method is "noaux_tc", this runtime computes only "greedy" or "group_lim'),
    ],
)
def test_v2_is_refused_what_only_v3_computes(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(v2_lite_config(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": "7168"}, 'hidden_size is "7168", expected an integer'),
        ({"hidden_size": 0}, "hidden_size is 0, expected a positive integer"),
        ({"n_routed_experts": 8.5}, "n_routed_experts is 8.5, expected an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true, expected an integer"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN, expected a positive number"),
        ({"rope_scaling": "yarn"}, 'rope_scaling is "yarn", expected an object'),
        ({"norm_topk_prob": "false"}, 'norm_topk_prob is "false", expected true or false'),
        ({"norm_topk_prob": 7}, "norm_topk_prob is 7, expected true or false"),
        ({"norm_topk_prob": None}, "norm_topk_prob is null, expected true or false"),
        ({"attention_bias": "false"}, 'attention_bias is "false", this runtime computes only false'),
        ({"moe_layer_freq": True}, "moe_layer_freq is true, this runtime computes only 1"),
        (fp8(weight_block_size=[128, "128"]), 'weight_block_size is [128, "128"]'),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_was_expected(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(v3_config(**changes))


@pytest.mark.parametrize("field", ["hidden_size", "kv_lora_rank", "n_routed_experts", "vocab_size", "v_head_dim"])
def test_a_missing_field_is_named(field: str) -> None:
    raw = v3_config()
    del raw[field]
    assert refusal(raw) == f"config.json: {field} is missing"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(YARN)), inner, max_size=3),
    max_leaves=4,
)


def outcome(raw: object) -> ModelConfig | ConfigError:
    try:
        return parse_config(raw)
    except ConfigError as error:
        return error


@settings(deadline=None, max_examples=300)
@given(field=st.sampled_from(sorted([*v3_config(), "quantization_config", "rope_parameters"])), value=_JSON)
def test_whatever_a_field_holds_it_is_followed_or_refused_in_a_sentence(field: str, value: object) -> None:
    found = outcome(v3_config(**{field: value}))
    assert isinstance(found, ModelConfig) or str(found).startswith("config.json")


def test_fields_without_influence_are_ignored() -> None:
    noise = {
        "aux_loss_alpha": 0.5,
        "attention_dropout": 0.1,
        "ep_size": 8,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "temperature": 0.6,
        "_name_or_path": "somewhere",
        "transformers_version": "5.24.0",
        "seq_aux": False,
        "pretraining_tp": 2,
        "auto_map": {"AutoModel": "modeling_deepseek.DeepseekV3Model"},
    }
    assert parse_config(v3_config(**noise)) == parse_config(v3_config())


def test_v2_and_v3_get_the_defaults_of_their_kind() -> None:
    fields = ("scoring_func", "topk_method", "norm_topk_prob", "routed_scaling_factor")
    v3, v2 = (
        parse_config({name: value for name, value in raw.items() if name not in fields}).router
        for raw in (v3_config(), v2_lite_config())
    )
    assert (v3.scoring, v3.has_bias, v3.normalise, v3.group_score, v3.scale) == (
        "sigmoid",
        True,
        True,
        "top2_sum",
        2.5,
    )
    assert (v2.scoring, v2.has_bias, v2.normalise, v2.groups, v2.scale) == ("softmax", False, False, 1, 1.0)


def test_groups_are_followed_only_where_the_method_knows_groups() -> None:
    grouped, greedy = (parse_config(v2_config(topk_method=m)).router for m in ("group_limited_greedy", "greedy"))
    assert (grouped.groups, grouped.chosen_groups, grouped.group_score) == (4, 2, "max")
    assert (greedy.groups, greedy.chosen_groups) == (1, 1)


def test_kimi_k2_s_own_model_type_is_v3() -> None:
    raw = kimi_k2_config()
    assert raw["model_type"] == "kimi_k2"
    assert parse_config(raw) == parse_config({**raw, "model_type": "deepseek_v3"})
    assert parse_config({**raw, "architectures": None}) == parse_config(raw)


def test_the_scale_format_of_v3_1_is_followed() -> None:
    v3_1, v3, bf16 = (parse_config(v3_config(**c)) for c in (fp8(scale_fmt="ue8m0"), fp8(), {}))
    assert (v3_1.fp8_block, v3_1.power_of_two_scales) == ((128, 128), True)
    assert (v3.power_of_two_scales, bf16.power_of_two_scales) == (False, False)


def test_layers_that_stay_unquantised_may_be_listed() -> None:
    listed = fp8(modules_to_not_convert=["lm_head"], ignored_layers=["model.layers.0"])
    assert parse_config(v3_config(**listed)) == parse_config(v3_config(**fp8()))


def test_new_rope_fields_mean_the_same_as_the_old() -> None:
    old = v3_config()
    new = {name: value for name, value in old.items() if name not in ("rope_scaling", "rope_theta")}
    scaling = {name: value for name, value in YARN.items() if name != "type"}
    new["rope_parameters"] = {**scaling, "rope_type": "yarn", "rope_theta": 10000}
    assert parse_config(new) == parse_config(old)
    assert parse_config({**old, "rope_parameters": new["rope_parameters"]}) == parse_config(old)


@pytest.mark.parametrize("scaling", [None, {}, {"type": "default"}, {"rope_type": "default", "rope_theta": 50000.0}])
def test_without_scaling_the_base_alone_counts(scaling: dict[str, Any] | None) -> None:
    rope = parse_config(v3_config(rope_theta=50000, rope_scaling=scaling)).rope
    assert (rope.theta, rope.factor) == (50000.0, 1.0)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is this a checkpoint folder"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json is \[\], expected an object"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(v3_config()))
    assert load_config(tmp_path).num_layers == 3
