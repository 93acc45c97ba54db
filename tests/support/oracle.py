"""transformers' DeepSeek-V2 and V3 in float32 over any checkpoint of the hub's layout, FP8 blocks dequantised by us.

transformers would dequantise an FP8 checkpoint itself, in its own way, and does not know Kimi-K2's model type; given
plain float32 weights and the architecture's own class it is the oracle for the maths alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from tiny_checkpoint import dequantise

_SCALE = "_scale_inv"


def oracle(folder: Path) -> Any:
    """The model in evaluation mode; raises AssertionError where it wants a tensor that the checkpoint lacks."""
    raw = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, raw["architectures"][0])
    fields = {name: raw[name] for name in raw if name not in ("quantization_config", "model_type", "torch_dtype")}
    model = kind(kind.config_class.from_dict(fields)).eval()
    model.set_experts_implementation("eager")  # the default refuses widths that are not round
    _fill(model.state_dict(), plain_weights(folder))
    return model


def plain_weights(folder: Path) -> dict[str, Tensor]:
    """Every weight of a checkpoint as float32."""
    stored = {name: t for shard in sorted(folder.glob("*.safetensors")) for name, t in load_file(shard).items()}
    weights = {name: tensor for name, tensor in stored.items() if not name.endswith(_SCALE)}
    return {n: dequantise(t, stored[n + _SCALE]) if n + _SCALE in stored else t.float() for n, t in weights.items()}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest distance over tokens of logits [T, V] from the expected ones, relative to their length."""
    assert got.shape == expected.shape
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def _fill(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(weights[name] if name in weights else _stacked(name, len(tensor), weights))


def _stacked(name: str, experts: int, weights: Mapping[str, Tensor]) -> Tensor:
    """transformers keeps the experts of a layer in one tensor, gate and up one above the other."""
    prefix, _, part = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(part)
    assert parts, f"transformers wants {name}, the checkpoint has no such tensor"
    return torch.stack([torch.cat([weights[f"{prefix}.{e}.{p}.weight"] for p in parts]) for e in range(experts)])
