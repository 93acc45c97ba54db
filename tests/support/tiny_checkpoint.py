"""Random checkpoints of the DeepSeek family in the hub's layout, small enough to compute in milliseconds.

Written without the runtime, so that both cannot share a mistake. The sizes are chosen to hurt: FP8 blocks are ragged,
two ranks cut inside a block, residual branches are damped so that a chaotic router does not drown a real difference.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

BLOCK = 128
Config = dict[str, Any]
Tensors = dict[str, Tensor]
Scales = Literal["any", "powers of two", "e8m0"]
"""FP8 multipliers: V3 stores any float32, V3.1 only powers of two, as float32 or as their exponent alone."""

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_CONFIG: Config = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 200,
    "hidden_size": 160,
    "intermediate_size": 264,
    "moe_intermediate_size": 136,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,  # transformers assumes 128 where it is absent
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": YARN,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
_V2_LITE: Config = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}
_V2: Config = {
    **_V2_LITE,
    "q_lora_rank": 96,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 16.0,
}
_KIMI_K2: Config = {
    "model_type": "kimi_k2",
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 24,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.827,
    "num_nextn_predict_layers": 0,
    "max_position_embeddings": 131072,
    "rope_theta": 50000.0,
    "rope_scaling": {**YARN, "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0},
}
_MOONLIGHT: Config = {
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.446,
    "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 50000.0,
    "rope_scaling": None,
}
QUANTISATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


def v3_config(**changes: Any) -> Config:
    """A raw `config.json` of V3's kind."""
    return {**_CONFIG, **changes}


def v2_lite_config(**changes: Any) -> Config:
    """A raw `config.json` of V2-Lite's kind: no query compression, softmax router, no groups, no MTP."""
    return {**_CONFIG, **_V2_LITE, **changes}


def v2_config(**changes: Any) -> Config:
    """A raw `config.json` of V2's kind: groups that count by their best expert, scale 16."""
    return {**_CONFIG, **_V2, **changes}


def kimi_k2_config(**changes: Any) -> Config:
    """A raw `config.json` of Kimi-K2's kind: a type of its own, many experts, no groups, a YaRN ramp of one pair."""
    return {**_CONFIG, **_KIMI_K2, **changes}


def moonlight_config(**changes: Any) -> Config:
    """A raw `config.json` of Moonlight's kind: no query compression, no groups, no YaRN, another epsilon."""
    return {**_CONFIG, **_MOONLIGHT, **changes}


def fp8_config(config: Config, scales: Scales = "any") -> Config:
    """The config of the same model with FP8 weights."""
    return {**config, "quantization_config": QUANTISATION | ({} if scales == "any" else {"scale_fmt": "ue8m0"})}


def write_checkpoint(folder: Path, config: Config, *, seed: int = 0, fp8: bool = False) -> Tensors:
    """Write config, two shards and index; the tensors as written. `fp8` quantises what the real checkpoint does."""
    tensors = random_tensors(config, seed)
    if fp8:
        config, tensors = fp8_config(config), quantise_all(tensors)
    write_tensors(folder, config, tensors)
    return tensors


def write_tensors(folder: Path, config: Config, tensors: Mapping[str, Tensor]) -> None:
    """Write config, two shards and index of given tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05d}-of-000002.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def random_tensors(config: Config, seed: int) -> Tensors:
    """All tensors under the hub's names; BF16 but for the correction bias."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape, std in _tensors(config):
        noise = torch.randn(*shape, generator=generator)
        is_norm, is_bias = len(shape) == 1 and not name.endswith("bias"), name.endswith("bias")
        tensors[name] = noise * 0.1 if is_bias else (1 + 0.1 * noise if is_norm else noise * std).bfloat16()
    last = config["num_hidden_layers"]
    if config["num_nextn_predict_layers"]:
        tensors[f"model.layers.{last}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[f"model.layers.{last}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return tensors


def quantise(weight: Tensor, scales: Scales = "any") -> tuple[Tensor, Tensor]:
    """E4m3 values and the multiplier of each block; a ragged block is padded with zeros first."""
    rows, columns = (math.ceil(size / BLOCK) for size in weight.shape)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[: weight.shape[0], : weight.shape[1]] = weight.float()
    blocks = padded.view(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-4) / 448.0
    if scales != "any":
        scale = scale.log2().ceil().exp2()
    values = (blocks / scale[:, None, :, None]).view_as(padded)
    fp8 = values[: weight.shape[0], : weight.shape[1]].to(torch.float8_e4m3fn)
    return fp8, scale.to(torch.float8_e8m0fnu) if scales == "e8m0" else scale


def dequantise(values: Tensor, scale: Tensor) -> Tensor:
    """Float32, element by element from the definition."""
    row, column = (torch.arange(size) // BLOCK for size in values.shape)
    return values.float() * scale.float()[row[:, None], column[None, :]]


def quantise_all(tensors: Mapping[str, Tensor], scales: Scales = "any") -> Tensors:
    """Projections become FP8 with scales; embeddings, head, norms, router and eh_proj stay."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(("_proj.weight", "_with_mqa.weight")) and "eh_proj" not in name:
            result[name], result[f"{name}_scale_inv"] = quantise(tensor, scales)
        else:
            result[name] = tensor
    return result


def dequantise_all(tensors: Mapping[str, Tensor]) -> Tensors:
    """The same checkpoint without FP8, in float32."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale_inv")}
    return {
        name: dequantise(tensor, tensors[f"{name}_scale_inv"]) if f"{name}_scale_inv" in tensors else tensor
        for name, tensor in plain.items()
    }


def _tensors(c: Config) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape and standard deviation of each tensor that is not a copy."""
    hidden = c["hidden_size"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden), 1.0
    for layer in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        yield from _layer(c, f"model.layers.{layer}", moe=layer >= c["first_k_dense_replace"])
        if layer >= c["num_hidden_layers"]:
            for name in ("enorm", "hnorm", "shared_head.norm"):
                yield f"model.layers.{layer}.{name}.weight", (hidden,), 0
            yield f"model.layers.{layer}.eh_proj.weight", (hidden, 2 * hidden), (2 * hidden) ** -0.5
    yield "model.norm.weight", (hidden,), 0
    yield "lm_head.weight", (c["vocab_size"], hidden), 2 * hidden**-0.5


def _layer(c: Config, prefix: str, *, moe: bool) -> Iterator[tuple[str, tuple[int, ...], float]]:
    hidden, heads, latent, attention = (
        c["hidden_size"],
        c["num_attention_heads"],
        c["kv_lora_rank"],
        f"{prefix}.self_attn",
    )
    query = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    yield f"{prefix}.input_layernorm.weight", (hidden,), 0
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,), 0
    if c["q_lora_rank"]:
        yield f"{attention}.q_a_proj.weight", (c["q_lora_rank"], hidden), hidden**-0.5
        yield f"{attention}.q_a_layernorm.weight", (c["q_lora_rank"],), 0
        yield f"{attention}.q_b_proj.weight", (heads * query, c["q_lora_rank"]), c["q_lora_rank"] ** -0.5
    else:
        yield f"{attention}.q_proj.weight", (heads * query, hidden), hidden**-0.5
    yield f"{attention}.kv_a_proj_with_mqa.weight", (latent + c["qk_rope_head_dim"], hidden), hidden**-0.5
    yield f"{attention}.kv_a_layernorm.weight", (latent,), 0
    yield f"{attention}.kv_b_proj.weight", (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), latent), latent**-0.5
    yield f"{attention}.o_proj.weight", (hidden, heads * c["v_head_dim"]), 0.3 * (heads * c["v_head_dim"]) ** -0.5
    if not moe:
        yield from _mlp(hidden, c["intermediate_size"], f"{prefix}.mlp")
        return
    yield f"{prefix}.mlp.gate.weight", (c["n_routed_experts"], hidden), 2 * hidden**-0.5
    if c["topk_method"] == "noaux_tc":
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (c["n_routed_experts"],), 0
    for expert in range(c["n_routed_experts"]):
        yield from _mlp(hidden, c["moe_intermediate_size"], f"{prefix}.mlp.experts.{expert}")
    yield from _mlp(hidden, c["moe_intermediate_size"] * c["n_shared_experts"], f"{prefix}.mlp.shared_experts")


def _mlp(hidden: int, width: int, prefix: str) -> Iterator[tuple[str, tuple[int, ...], float]]:
    yield f"{prefix}.gate_proj.weight", (width, hidden), hidden**-0.5
    yield f"{prefix}.up_proj.weight", (width, hidden), hidden**-0.5
    yield f"{prefix}.down_proj.weight", (hidden, width), 0.3 * width**-0.5
