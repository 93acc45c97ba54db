"""Rotary position embedding with YaRN's frequencies. Tables and rotation are float32: positions go up to 163840."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepseek_runtime.model.config import ModelConfig, RopeConfig


def inverse_frequencies(config: RopeConfig, dim: int) -> Tensor:
    """Angle per position of each of the dim/2 pairs; fast pairs as trained, slow ones slowed by `factor`."""
    plain = 1.0 / config.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if config.factor == 1.0:
        return plain
    low = max(math.floor(_pair_turning(config.beta_fast, config, dim)), 0)
    high = min(math.ceil(_pair_turning(config.beta_slow, config, dim)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / config.factor * ramp


def _pair_turning(rotations: float, config: RopeConfig, dim: int) -> float:
    """The (fractional) pair that turns `rotations` times over the original context."""
    wavelength = config.original_max_position / (rotations * 2 * math.pi)
    return dim * math.log(wavelength) / (2 * math.log(config.theta))


def attention_scale(config: ModelConfig) -> float:
    """Softmax scale: the expanded head's width^-½, times mscale² wherever the scaling is YaRN, at every length."""
    return float(config.qk_head_dim**-0.5 * _mscale(config.rope.factor, config.rope.mscale_all_dim) ** 2)


def table_scale(config: RopeConfig) -> float:
    """What cosine and sine are multiplied by: the ratio of the two mscales, 1 for V3."""
    return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class Rope:
    """The rotation of every position, as unit complex numbers times the table scale."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._frequencies = inverse_frequencies(config.rope, config.qk_rope_head_dim).to(device)
        self._scale = table_scale(config.rope)

    def rotations(self, positions_T: Tensor) -> Tensor:
        """[T, R / 2] complex64."""
        angles = positions_T.float().unsqueeze(1) * self._frequencies
        return torch.polar(torch.full_like(angles, self._scale), angles)
