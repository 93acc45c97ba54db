"""The `Kernels` of GPUs: Triton's where they cover the case and pay, the torch twin for everything else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.kernels.interface import Expansion, Latents, SwiGLU
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.kernels.triton import gemm, grouped, mla_decode, mla_prefill, norms, rope, router
from deepseek_runtime.kernels.triton.hardware import Hardware
from deepseek_runtime.kernels.triton.tiles import Layout, is_covered
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed, Expanded


class TritonKernels(TorchKernels):
    """See `interface.Kernels` for what each operation does.

    FP8 weights are multiplied in FP8 (W8A8) where the hardware multiplies the kind that they are stored in, otherwise
    decoded tile by tile (W8A16). Dense matrices go to the vendor's library, whose choice of algorithm may follow the
    number of rows; `batch_invariant` multiplies them here instead, in tiles of one shape, so that a token's result is
    the same bits in every batch.
    """

    decodes_fp8: bool = True

    def __init__(self, hardware: Hardware, *, batch_invariant: bool = False) -> None:
        self._hardware = hardware
        self._invariant = batch_invariant

    @classmethod
    def for_device(
        cls, device: torch.device, *, batch_invariant: bool = False, power_of_two_scales: bool = False
    ) -> TritonKernels:
        """The kernels of one device; `power_of_two_scales` is the checkpoint's `scale_fmt: ue8m0`."""
        return cls(Hardware.of(device, power_of_two=power_of_two_scales), batch_invariant=batch_invariant)

    def linear(self, x_TI: Tensor, weight_OI: Weight) -> Tensor:
        if not is_covered(weight_OI) or not (self._invariant or isinstance(weight_OI, Fp8Weight)):
            return super().linear(x_TI, weight_OI)
        return gemm.linear(x_TI, weight_OI, self._hardware, batch_invariant=self._invariant)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norms.rms_norm(x.reshape(-1, x.shape[-1]).contiguous(), weight, eps).view(x.shape)

    def add_rms_norm(self, residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return norms.add_rms_norm(residual_TD.contiguous(), x_TD.contiguous(), weight_D, eps)

    def route(
        self, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, config: RouterConfig
    ) -> tuple[Tensor, Tensor]:
        return router.choose(self._router_logits(x_TD.float(), weight_ED.float()), bias_E, config)

    def swiglu(self, x_TD: Tensor, weights: SwiGLU) -> Tensor:
        if not _is_fused(weights) or not (self._invariant or isinstance(weights.gate, Fp8Weight)):
            return super().swiglu(x_TD, weights)
        gated = grouped.swiglu(x_TD, weights, self._hardware, batch_invariant=self._invariant)
        return self.linear(gated, weights.down)

    def experts(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, experts: SwiGLU) -> Tensor:
        if not _is_fused(experts):
            return super().experts(x_TD, slots_TK, weights_TK, experts)
        return grouped.experts(x_TD, slots_TK, weights_TK, experts, self._hardware, batch_invariant=self._invariant)

    def rotate(self, x_THR: Tensor, rotations_T: Tensor) -> Tensor:
        return rope.rotate(x_THR if x_THR.stride(-1) == 1 else x_THR.contiguous(), rotations_T)

    def write_latents(self, joined_TW: Tensor, norm_C: Tensor, eps: float, where: Latents) -> None:
        rope.write_latents(joined_TW, norm_C, eps, where)

    def absorbed_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, expansion: Expansion
    ) -> Tensor:
        q_THC = self._per_head(q_nope_THN, expansion.w_uk_HNC.mT)
        count = mla_decode.splits(
            part.tokens_BQ.numel(), q_THC.shape[1], self._hardware, batch_invariant=self._invariant
        )
        queries = (q_THC, q_rope_THR)
        mix = mla_decode.absorbed_attention(queries, cache_SW, part, expansion.scale, count, self._hardware)
        return self._per_head(mix, expansion.w_uv_HVC)

    def expanded_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Expanded, expansion: Expansion
    ) -> Tensor:
        tokens = slice(part.start, part.stop)
        rows_SW = cache_SW[part.slots_S].to(q_nope_THN.dtype)
        return mla_prefill.expanded_attention(
            q_nope_THN[tokens], q_rope_THR[tokens], rows_SW, expansion, self._hardware
        )

    def _router_logits(self, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        if self._invariant:
            return gemm.linear(x_TD, weight_ED, self._hardware, batch_invariant=True)
        logits: Tensor = functional.linear(x_TD, weight_ED)
        return logits

    def _per_head(self, x_THI: Tensor, weight_HOI: Tensor) -> Tensor:
        """x times a matrix of each head's own [T, H, O]."""
        if not self._invariant:
            return (x_THI.transpose(0, 1) @ weight_HOI.mT).transpose(0, 1)
        return gemm.linear_per_head(x_THI, weight_HOI, self._hardware)


def _is_fused(weights: SwiGLU) -> bool:
    """Whether the fused kernels can walk these weights: gate and up in one layout."""
    alike = Layout.of(weights.gate, None) == Layout.of(weights.up, None)
    return alike and all(map(is_covered, (weights.gate, weights.up, weights.down)))
