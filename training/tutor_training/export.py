"""Write a trained network as the hub would hold it: config, tokenizer, safetensors shards with an index, FP8 blocks."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tutor_training.network import CONFIG, Network
from tutor_training.vocabulary import save_tokenizer

BLOCK = 128
SHARDS = 3
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
_QUANTISED = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 blocks of 128×128 and their multipliers [⌈out/128⌉, ⌈in/128⌉] float32; ragged blocks as if zero-padded."""
    out, inputs = weight.shape
    rows, columns = -(-out // BLOCK), -(-inputs // BLOCK)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[:out, :inputs] = weight.float()
    blocks = padded.view(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-12) / _FP8_MAX
    stored = (blocks / scale[:, None, :, None]).view_as(padded)[:out, :inputs]
    return stored.to(torch.float8_e4m3fn), scale


def dequantise(stored: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight that `stored` stands for."""
    full = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return stored.float() * full[: stored.shape[0], : stored.shape[1]]


@torch.no_grad()
def round_to_fp8(weight: Tensor) -> Tensor:
    """`weight` as it will be read back from the checkpoint."""
    return dequantise(*quantise(weight))


def checkpoint_tensors(network: Network) -> dict[str, Tensor]:
    """All tensors under the hub's names and in its types, the MTP layer's copies of embedding and head included."""
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensors[name] = value.float().clone()
        elif name.split(".")[-2] in _QUANTISED:
            tensors[name], tensors[f"{name}_scale_inv"] = quantise(value)
        else:
            tensors[name] = value.to(torch.bfloat16)
    mtp = f"model.layers.{CONFIG['num_hidden_layers']}"
    tensors[f"{mtp}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{mtp}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    total = sum(t.nbytes for t in tensors.values())
    index: dict[str, str] = {}
    shards: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    done = 0
    for name, tensor in tensors.items():
        number = min(done * SHARDS // total, SHARDS - 1)
        shards[number][name] = tensor
        index[name] = f"model-{number + 1:05d}-of-{SHARDS:06d}.safetensors"
        done += tensor.nbytes
    for number, shard in enumerate(shards):
        path = folder / f"model-{number + 1:05d}-of-{SHARDS:06d}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors writes files that only their owner may read; serving pods are another user
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2) + "\n")


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the whole checkpoint into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    quantisation = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    }
    config = {**CONFIG, "quantization_config": quantisation}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False, "_from_model_config": True}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)
    _write_shards(checkpoint_tensors(network), folder)
