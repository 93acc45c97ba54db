"""Plain torch whose results are the same bits in every batch: each token is computed alone, always by the same shapes.

Libraries choose an algorithm, and with it the order of a sum, by the number of rows; even what is done element by
element rounds otherwise where a vector begins elsewhere. This is slow, and right anywhere.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import Expansion, Latents, SwiGLU
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed

ALWAYS = sys.maxsize
"""An `absorb_up_to`: one form of attention, whether a prompt comes whole, in chunks, or token by token."""


class InvariantTorchKernels(TorchKernels):
    """See `interface.Kernels` for what each operation does."""

    absorb_up_to = ALWAYS

    def linear(self, x_TI: Tensor, weight_OI: Weight) -> Tensor:
        linear = super().linear
        return torch.cat([linear(row, weight_OI) for row in _alone(x_TI)])

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = super().rms_norm
        return torch.cat([norm(row, weight, eps) for row in _alone(x.flatten(0, -2))]).view(x.shape)

    def route(
        self, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, config: RouterConfig
    ) -> tuple[Tensor, Tensor]:
        route = super().route
        ids, weights = zip(*(route(row, weight_ED, bias_E, config) for row in _alone(x_TD)), strict=True)
        return torch.cat(ids), torch.cat(weights)

    def swiglu(self, x_TD: Tensor, weights: SwiGLU) -> Tensor:
        layer = super().swiglu
        return torch.cat([layer(row, weights) for row in _alone(x_TD)])

    def experts(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, experts: SwiGLU) -> Tensor:
        visit = super().experts
        rows = zip(_alone(x_TD), _alone(slots_TK), _alone(weights_TK), strict=True)
        return torch.cat([visit(x, slots, weights, experts) for x, slots, weights in rows])

    def rotate(self, x_THR: Tensor, rotations_T: Tensor) -> Tensor:
        rotate = super().rotate
        return torch.cat([rotate(*row) for row in zip(_alone(x_THR), _alone(rotations_T), strict=True)])

    def write_latents(self, joined_TW: Tensor, norm_C: Tensor, eps: float, where: Latents) -> None:
        rows = zip(_alone(joined_TW), _alone(where.slots_T), _alone(where.rotations_T), strict=True)
        for joined, slot, rotation in rows:
            super().write_latents(joined, norm_C, eps, Latents(where.cache_SW, slot, rotation))

    def absorbed_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, expansion: Expansion
    ) -> Tensor:
        attend = super().absorbed_attention
        tokens, lengths = part.tokens_BQ.flatten().tolist(), part.lengths_BQ.flatten().tolist()
        queries, outputs = part.tokens_BQ.shape[1], []
        for index, (token, length) in enumerate(zip(tokens, lengths, strict=True)):
            alone = replace(
                part,
                tokens_BQ=part.tokens_BQ.new_zeros(1, 1),
                lengths_BQ=part.lengths_BQ.new_full((1, 1), length),
                blocks_BP=part.blocks_BP[index // queries, : -(-length // part.block_size)].unsqueeze(0),
                context=length,
            )
            q_nope, q_rope = q_nope_THN[token : token + 1].clone(), q_rope_THR[token : token + 1].clone()
            outputs.append(attend(q_nope, q_rope, cache_SW, alone, expansion))
        return torch.cat(outputs)


def _alone(rows: Tensor) -> list[Tensor]:
    """Each row in memory of its own: libraries sum in another order where a row begins at another alignment."""
    return [row.clone() for row in torch.split(rows, 1)]
