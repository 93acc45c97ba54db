"""What changes the maths and is not built is refused by its name; the rest is read or ignored."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepseek_runtime.model.config import ConfigError, load_config, parse_config
from tiny_checkpoint import QUANTISATION, v2_lite_config, v3_config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is LlamaForCausalLM, known are DeepseekV3ForCausalLM"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ({"num_nextn_predict_layers": 3}, "num_nextn_predict_layers is 3"),
        ({"index_topk": 2048}, "index_topk is 2048"),
        ({"rope_interleave": False}, "rope_interleave is false"),
        ({"scoring_func": "tanh"}, "scoring_func is tanh"),
        ({"topk_method": "magic"}, "topk_method is magic"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type is linear"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_parameters.type is longrope"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": False}}, "rope_scaling.truncate is false"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method awq"),
        ({"quantization_config": {**QUANTISATION, "weight_block_size": None}}, "weight_block_size None"),
        ({"n_group": 3}, "n_group 3 does not divide n_routed_experts 8"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 of the 4 experts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_maths_that_is_not_built_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(v3_config(**changes))
    assert said in str(caught.value)


@pytest.mark.parametrize("field", ["hidden_size", "kv_lora_rank", "n_routed_experts", "vocab_size"])
def test_a_missing_field_is_named(field: str) -> None:
    raw = v3_config()
    del raw[field]
    with pytest.raises(ConfigError, match=f"{field} is missing"):
        parse_config(raw)


def test_fields_without_influence_are_ignored() -> None:
    noise = {"aux_loss_alpha": 0.5, "ep_size": 8, "num_key_value_heads": 1, "future_field": "x", "seq_aux": False}
    assert parse_config(v3_config(**noise)) == parse_config(v3_config())


def test_v2_and_v3_get_the_defaults_of_their_kind() -> None:
    fields = ("scoring_func", "topk_method", "norm_topk_prob")
    v3, v2 = (
        parse_config({name: value for name, value in raw.items() if name not in fields}).router
        for raw in (v3_config(), v2_lite_config())
    )
    assert (v3.scoring, v3.has_bias, v3.normalise, v3.group_score) == ("sigmoid", True, True, "top2_sum")
    assert (v2.scoring, v2.has_bias, v2.normalise, v2.groups) == ("softmax", False, False, 1)


def test_the_scale_format_of_v3_1_is_accepted() -> None:
    assert parse_config(v3_config(quantization_config={**QUANTISATION, "scale_fmt": "ue8m0"})).fp8_block == (128, 128)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is this a checkpoint folder"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(v3_config()))
    assert load_config(tmp_path).num_layers == 3
