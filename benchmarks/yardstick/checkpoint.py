"""The yardstick model: DeepSeek-V3's architecture with 1.2 B random parameters, in the hub's layout, BF16 and FP8.

Small enough for a laptop, and still shaped like the real one where it decides about speed: the latent of 512 + 64
values a token, many small experts of which few are chosen, one dense layer, one MTP layer.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.yardstick.console import step
from benchmarks.yardstick.places import cache_folder, making, require_disk
from benchmarks.yardstick.vocabulary import write_tokenizer

_VERSION = "1"  # part of the stamp: raise it when what is written changes
_SEED = 0
_SHARD_BYTES = 2**30
_BLOCK = 128
_FP8_MAX = 448.0

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 12,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,  # transformers assumes 128 where it is absent
    "q_lora_rank": 384,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_QUANTISATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [_BLOCK, _BLOCK],
}

Named = Iterator[tuple[str, Tensor]]


def bf16_checkpoint() -> Path:
    """Folder of the BF16 model (2.7 GB), made on first use."""
    return _made("model-bf16", CONFIG, lambda: _with_copies(_random_tensors(CONFIG)))


def fp8_checkpoint() -> Path:
    """Folder of the same weights in FP8 blocks (1.4 GB), made on first use."""
    source = bf16_checkpoint()
    return _made("model-fp8", {**CONFIG, "quantization_config": _QUANTISATION}, lambda: _quantised(stored(source)))


def stored(folder: Path) -> Named:
    """Every tensor of a checkpoint, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a mapping
                yield name, shard.get_tensor(name)


def _made(name: str, config: Mapping[str, Any], tensors: Any) -> Path:
    folder = cache_folder() / name
    with making(folder, f"{_VERSION} {_SEED} {json.dumps(config)}") as missing:
        if missing:
            require_disk(folder.parent, 3, "The yardstick model")
            with step(f"Writing the yardstick model to {folder}"):
                _write(folder, config, tensors())
    return folder


def _write(folder: Path, config: Mapping[str, Any], tensors: Named) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(tensors), 1):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder, config["vocab_size"])


def _shards(tensors: Named) -> Iterator[dict[str, Tensor]]:
    """Tensors in parts of about a gibibyte, so that no more than one is in memory."""
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        if sum(part.nbytes for part in shard.values()) >= _SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _random_tensors(config: Mapping[str, Any]) -> Named:
    generator = torch.Generator().manual_seed(_SEED)
    for name, shape, std in _shapes(config):
        noise = torch.randn(*shape, generator=generator)
        if name.endswith("bias"):
            yield name, 0.05 * noise
        elif len(shape) == 1:
            yield name, (1 + 0.05 * noise).bfloat16()
        else:
            yield name, (std * noise).bfloat16()


def _with_copies(tensors: Named) -> Named:
    """As DeepSeek stores it: the MTP layer repeats embedding and head."""
    last = f"model.layers.{CONFIG['num_hidden_layers']}"
    copies = {"model.embed_tokens.weight": "embed_tokens.weight", "lm_head.weight": "shared_head.head.weight"}
    for name, tensor in tensors:
        yield name, tensor
        if name in copies:
            yield f"{last}.{copies[name]}", tensor.clone()


def _quantised(tensors: Iterable[tuple[str, Tensor]]) -> Named:
    """Projections in FP8 with one scale a block; embeddings, head, norms, router and `eh_proj` stay."""
    for name, tensor in tensors:
        if name.endswith(("_proj.weight", "_with_mqa.weight")) and "eh_proj" not in name:
            values, scale = _quantise(tensor)
            yield name, values
            yield f"{name}_scale_inv", scale
        else:
            yield name, tensor


def _quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 values and what each block of 128 × 128 must be multiplied by."""
    rows, columns = (math.ceil(size / _BLOCK) for size in weight.shape)
    padded = torch.zeros(rows * _BLOCK, columns * _BLOCK)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(rows, _BLOCK, columns, _BLOCK)
    scale = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-4) / _FP8_MAX
    values = (blocks / scale[:, None, :, None]).view_as(padded)[: weight.shape[0], : weight.shape[1]]
    return values.to(torch.float8_e4m3fn), scale


_Shape = tuple[str, tuple[int, ...], float]


def _shapes(c: Mapping[str, Any]) -> Iterator[_Shape]:
    """Name, shape and standard deviation of every tensor that is no copy."""
    hidden, layers = c["hidden_size"], c["num_hidden_layers"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden), 0.5
    for layer in range(layers + c["num_nextn_predict_layers"]):
        yield from _layer(c, f"model.layers.{layer}", dense=layer < c["first_k_dense_replace"])
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield f"model.layers.{layers}.{name}.weight", (hidden,), 0
    yield f"model.layers.{layers}.eh_proj.weight", (hidden, 2 * hidden), (2 * hidden) ** -0.5
    yield "model.norm.weight", (hidden,), 0
    yield "lm_head.weight", (c["vocab_size"], hidden), 2 * hidden**-0.5


def _layer(c: Mapping[str, Any], prefix: str, *, dense: bool) -> Iterator[_Shape]:
    hidden, width = c["hidden_size"], c["moe_intermediate_size"]
    yield f"{prefix}.input_layernorm.weight", (hidden,), 0
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,), 0
    yield from _attention(c, f"{prefix}.self_attn")
    if dense:
        yield from _swiglu(hidden, c["intermediate_size"], f"{prefix}.mlp")
        return
    yield f"{prefix}.mlp.gate.weight", (c["n_routed_experts"], hidden), hidden**-0.5
    yield f"{prefix}.mlp.gate.e_score_correction_bias", (c["n_routed_experts"],), 0
    for expert in range(c["n_routed_experts"]):
        yield from _swiglu(hidden, width, f"{prefix}.mlp.experts.{expert}")
    yield from _swiglu(hidden, width * c["n_shared_experts"], f"{prefix}.mlp.shared_experts")


def _attention(c: Mapping[str, Any], prefix: str) -> Iterator[_Shape]:
    hidden, heads, query_rank, latent = c["hidden_size"], c["num_attention_heads"], c["q_lora_rank"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    yield f"{prefix}.q_a_proj.weight", (query_rank, hidden), hidden**-0.5
    yield f"{prefix}.q_a_layernorm.weight", (query_rank,), 0
    yield f"{prefix}.q_b_proj.weight", (heads * (nope + rope), query_rank), query_rank**-0.5
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (latent + rope, hidden), hidden**-0.5
    yield f"{prefix}.kv_a_layernorm.weight", (latent,), 0
    yield f"{prefix}.kv_b_proj.weight", (heads * (nope + value), latent), latent**-0.5
    yield f"{prefix}.o_proj.weight", (hidden, heads * value), 0.3 * (heads * value) ** -0.5


def _swiglu(hidden: int, width: int, prefix: str) -> Iterator[_Shape]:
    """Down projections are damped: twelve undamped random branches would drown the embedding."""
    yield f"{prefix}.gate_proj.weight", (width, hidden), hidden**-0.5
    yield f"{prefix}.up_proj.weight", (width, hidden), hidden**-0.5
    yield f"{prefix}.down_proj.weight", (hidden, width), 0.3 * width**-0.5
