"""Bytes of weights that a step of decoding must read, from the headers of the checkpoint's own files."""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROUTED = re.compile(r"\.mlp\.experts\.\d+\.")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_CACHE_ITEM = 2
_TOKENS_SEEN = "model.embed_tokens."


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """Sizes in bytes as stored; `always` is what every step reads, `routed` all experts of all layers."""

    total: int
    always: int
    routed: int
    experts: int
    layers_with_experts: int
    cache_per_token: int

    def step(self, touched: float, batch: int, context: int) -> float:
        """Bytes of a step of `batch` sequences that touches `touched` experts, summed over the layers."""
        expert = self.routed / (self.experts * self.layers_with_experts)
        return self.always + touched * expert + batch * context * self.cache_per_token

    def uniform(self, batch: int, per_token: int) -> float:
        """Experts touched, summed over the layers, were every token to choose at random."""
        missed: float = (1 - per_token / self.experts) ** batch
        return self.layers_with_experts * self.experts * (1 - missed)


def model_bytes(folder: Path) -> ModelBytes:
    """Sizes of a checkpoint. Embedding rows are too few to count, the MTP layer is not used here."""
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    sizes = {name: size for name, size in _sizes(folder) if _layer(name) < layers}
    routed = sum(size for name, size in sizes.items() if _ROUTED.search(name))
    embedding = sum(size for name, size in sizes.items() if name.startswith(_TOKENS_SEEN))
    return ModelBytes(
        total=sum(sizes.values()),
        always=sum(sizes.values()) - routed - embedding,
        routed=routed,
        experts=config["n_routed_experts"],
        layers_with_experts=layers - config["first_k_dense_replace"],
        cache_per_token=layers * (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * _CACHE_ITEM,
    )


def matrix_parameters(config: Mapping[str, Any], sizes: ModelBytes, item: int) -> float:
    """Parameters that multiply a prompt's token: all that a step reads but the head, with the experts of one token."""
    head: int = config["vocab_size"] * config["hidden_size"]
    touched = sizes.layers_with_experts * config["num_experts_per_tok"]
    return sizes.step(touched, 0, 0) / item - head


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else -1


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield name, end - start
