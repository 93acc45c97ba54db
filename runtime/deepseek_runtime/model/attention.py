"""Multi-head latent attention of this rank's heads over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Weight, linear
from deepseek_runtime.kernels.mla import absorbed_attention, expanded_attention
from deepseek_runtime.kernels.norm import rms_norm
from deepseek_runtime.model.config import ModelConfig
from deepseek_runtime.model.rope import attention_scale, rotate
from deepseek_runtime.model.step import Absorbed, Expanded, Step


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """`q_a` and `q_a_norm` are None where queries come straight from the hidden state (V2-Lite); `q_b` then reads D."""

    q_a: Weight | None
    q_a_norm: Tensor | None
    q_b: Weight
    kv_a: Weight
    kv_a_norm: Tensor
    w_uk_HNC: Tensor
    w_uv_HVC: Tensor
    o: Weight


class Attention:
    """x [T, D] to this rank's part of the output [T, D], writing the step's latents to the cache on the way."""

    def __init__(self, config: ModelConfig, weights: AttentionWeights) -> None:
        self._config = config
        self._weights = weights
        self._scale = attention_scale(config)

    def __call__(self, x_TD: Tensor, step: Step, cache_SW: Tensor) -> Tensor:
        q_nope_THN, q_rope_THR = self._queries(x_TD, step)
        cache_SW[step.slots_T] = self._latents(x_TD, step).to(cache_SW.dtype)
        mixed_THV = x_TD.new_empty(*q_nope_THN.shape[:2], self._config.v_head_dim)
        if step.absorbed:
            tokens = step.absorbed.tokens_BQ.flatten()
            mixed_THV[tokens] = self._absorbed(q_nope_THN, q_rope_THR, step.absorbed, cache_SW)
        for part in step.expanded:
            mixed_THV[part.start : part.stop] = self._expanded(q_nope_THN, q_rope_THR, part, cache_SW)
        return linear(mixed_THV.flatten(1), self._weights.o)

    def _queries(self, x_TD: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        config, weights = self._config, self._weights
        if weights.q_a is not None and weights.q_a_norm is not None:
            x_TD = rms_norm(linear(x_TD, weights.q_a), weights.q_a_norm, config.rms_norm_eps)
        q_THQ = linear(x_TD, weights.q_b).view(len(x_TD), -1, config.qk_head_dim)
        nope, rope = torch.split(q_THQ, [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        return nope, rotate(rope, step.rotations_T.unsqueeze(1))

    def _latents(self, x_TD: Tensor, step: Step) -> Tensor:
        """What is cached of each token [T, W]. Only the latent is normalised, only the key is rotated."""
        config, weights = self._config, self._weights
        joined = linear(x_TD, weights.kv_a)
        latent, key = torch.split(joined, [config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        normed = rms_norm(latent, weights.kv_a_norm, config.rms_norm_eps)
        return torch.cat((normed, rotate(key, step.rotations_T)), dim=-1)

    def _absorbed(self, q_nope_THN: Tensor, q_rope_THR: Tensor, part: Absorbed, cache_SW: Tensor) -> Tensor:
        """Output of the part's tokens [B·Q, H, V]."""
        weights, dtype = self._weights, q_nope_THN.dtype
        q_THC = (q_nope_THN.transpose(0, 1) @ weights.w_uk_HNC).transpose(0, 1)
        q_BQHW = torch.cat((q_THC, q_rope_THR), dim=-1)[part.tokens_BQ]
        rows_BSW = cache_SW[part.slots_BS].to(dtype)
        mix_BQHC = absorbed_attention(q_BQHW, rows_BSW, part.visible_BQS, self._config.kv_lora_rank, self._scale)
        return (mix_BQHC.flatten(0, 1).transpose(0, 1) @ weights.w_uv_HVC.mT).transpose(0, 1)

    def _expanded(self, q_nope_THN: Tensor, q_rope_THR: Tensor, part: Expanded, cache_SW: Tensor) -> Tensor:
        """Output of one sequence's tokens [Q, H, V]."""
        weights, tokens = self._weights, slice(part.start, part.stop)
        q_QHQ = torch.cat((q_nope_THN[tokens], q_rope_THR[tokens]), dim=-1)
        rows_SW = cache_SW[part.slots_S].to(q_QHQ.dtype)
        return expanded_attention(q_QHQ, rows_SW, weights.w_uk_HNC, weights.w_uv_HVC, self._scale)
