"""The paged cache: per token and layer one normalised latent and one rotated key, shared by all heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.model.config import ModelConfig


@dataclass(frozen=True)
class LatentCache:
    """`values` [layers, slots, C + R]; the last layer is the MTP layer's where the model has one."""

    values: Tensor
    block_size: int

    @classmethod
    def create(
        cls, config: ModelConfig, num_blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
    ) -> LatentCache:
        """An empty cache of `num_blocks` blocks of `block_size` tokens."""
        shape = (config.num_cache_layers, num_blocks * block_size, config.cache_width)
        return cls(torch.zeros(shape, dtype=dtype, device=device), block_size)

    @property
    def num_layers(self) -> int:
        """Layers that cache, the MTP layer included."""
        return self.values.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.values.shape[1] // self.block_size

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token over all layers."""
        return self.num_layers * self.values.shape[2] * self.values.element_size()

    def layer(self, index: int) -> Tensor:
        """The slots [slots, C + R] of one layer, to read and to write."""
        return self.values[index]
