"""Plain torch: what every operation means, on any device. The others are tested against it, and it against float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deepseek_runtime.kernels import fp8, mla, norm, router
from deepseek_runtime.kernels.experts import grouped_experts
from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import Expansion, Latents, SwiGLU
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed, Expanded


class TorchKernels:
    """See `interface.Kernels` for what each operation does."""

    decodes_fp8: bool = False
    absorb_up_to: int = 8
    """Decoding and the verification of drafts; with more queries the expanded form has less to compute."""

    def linear(self, x_TI: Tensor, weight_OI: Weight) -> Tensor:
        return fp8.linear(x_TI, weight_OI)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        summed = residual_TD + x_TD
        return summed, self.rms_norm(summed, weight_D, eps)

    def route(
        self, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, config: RouterConfig
    ) -> tuple[Tensor, Tensor]:
        return router.route(x_TD, weight_ED, bias_E, config)

    def swiglu(self, x_TD: Tensor, weights: SwiGLU) -> Tensor:
        gated = functional.silu(self.linear(x_TD, weights.gate)) * self.linear(x_TD, weights.up)
        return self.linear(gated, weights.down)

    def experts(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, experts: SwiGLU) -> Tensor:
        return grouped_experts(x_TD, slots_TK, weights_TK, experts, self.swiglu)

    def rotate(self, x_THR: Tensor, rotations_T: Tensor) -> Tensor:
        return mla.rotate(x_THR, rotations_T.unsqueeze(1))

    def write_latents(self, joined_TW: Tensor, norm_C: Tensor, eps: float, where: Latents) -> None:
        latent, key = joined_TW.tensor_split([len(norm_C)], dim=-1)
        rows = torch.cat((self.rms_norm(latent, norm_C, eps), mla.rotate(key, where.rotations_T)), dim=-1)
        where.cache_SW[where.slots_T] = rows.to(where.cache_SW.dtype)

    def absorbed_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, expansion: Expansion
    ) -> Tensor:
        q_THC = (q_nope_THN.transpose(0, 1) @ expansion.w_uk_HNC).transpose(0, 1)
        q_BQHW = torch.cat((q_THC, q_rope_THR), dim=-1)[part.tokens_BQ]
        rows_BSW = cache_SW[part.slots_BS].to(q_nope_THN.dtype)
        latent = expansion.w_uk_HNC.shape[2]
        mix_BQHC = mla.absorbed_attention(q_BQHW, rows_BSW, part.visible_BQS, latent, expansion.scale)
        return (mix_BQHC.flatten(0, 1).transpose(0, 1) @ expansion.w_uv_HVC.mT).transpose(0, 1)

    def expanded_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Expanded, expansion: Expansion
    ) -> Tensor:
        tokens = slice(part.start, part.stop)
        q_QHQ = torch.cat((q_nope_THN[tokens], q_rope_THR[tokens]), dim=-1)
        rows_SW = cache_SW[part.slots_S].to(q_QHQ.dtype)
        return mla.expanded_attention(q_QHQ, rows_SW, expansion.w_uk_HNC, expansion.w_uv_HVC, expansion.scale)
