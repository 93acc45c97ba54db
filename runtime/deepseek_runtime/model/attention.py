"""Multi-head latent attention of this rank's heads over the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import Expansion, Kernels, Latents
from deepseek_runtime.model.config import ModelConfig
from deepseek_runtime.model.step import Step


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """`q_a` and `q_a_norm` are None where queries come straight from the hidden state (V2-Lite); `q_b` then reads D."""

    q_a: Weight | None
    q_a_norm: Tensor | None
    q_b: Weight
    kv_a: Weight
    kv_a_norm: Tensor
    expansion: Expansion
    o: Weight


@dataclass(frozen=True, slots=True)
class Attention:
    """x [T, D] to this rank's part of the output [T, D], writing the step's latents to the cache on the way."""

    config: ModelConfig
    weights: AttentionWeights
    kernels: Kernels

    def __call__(self, x_TD: Tensor, step: Step, cache_SW: Tensor) -> Tensor:
        weights, kernels = self.weights, self.kernels
        q_nope_THN, q_rope_THR = self._queries(x_TD, step)
        where = Latents(cache_SW, step.slots_T, step.rotations_T)
        kernels.write_latents(kernels.linear(x_TD, weights.kv_a), weights.kv_a_norm, self.config.rms_norm_eps, where)
        mixed_THV = self._mix(q_nope_THN, q_rope_THR, step, cache_SW)
        return kernels.linear(mixed_THV.flatten(1), weights.o)

    def _queries(self, x_TD: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        config, weights, kernels = self.config, self.weights, self.kernels
        if weights.q_a is not None and weights.q_a_norm is not None:
            x_TD = kernels.rms_norm(kernels.linear(x_TD, weights.q_a), weights.q_a_norm, config.rms_norm_eps)
        q_THQ = kernels.linear(x_TD, weights.q_b).view(len(x_TD), -1, config.qk_head_dim)
        nope, rope = q_THQ.split_with_sizes((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return nope, kernels.rotate(rope, step.rotations_T)

    def _mix(self, q_nope_THN: Tensor, q_rope_THR: Tensor, step: Step, cache_SW: Tensor) -> Tensor:
        """Attention-weighted values [T, H, V] of every token, each sequence in the form that suits its length."""
        kernels, expansion = self.kernels, self.weights.expansion
        if step.absorbed and step.absorbed.covers_step:
            return kernels.absorbed_attention(q_nope_THN, q_rope_THR, cache_SW, step.absorbed, expansion)
        mixed_THV = q_nope_THN.new_empty(*q_nope_THN.shape[:2], self.config.v_head_dim)
        if step.absorbed:
            tokens = step.absorbed.tokens_BQ.flatten()
            mixed_THV[tokens] = kernels.absorbed_attention(q_nope_THN, q_rope_THR, cache_SW, step.absorbed, expansion)
        for part in step.expanded:
            output = kernels.expanded_attention(q_nope_THN, q_rope_THR, cache_SW, part, expansion)
            mixed_THV[part.start : part.stop] = output
        return mixed_THV
