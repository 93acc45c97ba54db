"""Plain torch whose results are the same bits in every batch: each token is computed alone, always by the same shapes.

Libraries choose an algorithm, and with it the order of a sum, by the number of rows. This is slow, and right anywhere.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import Expansion, SwiGLU
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed

ALWAYS = sys.maxsize
"""An `absorb_up_to`: one form of attention, whether a prompt comes whole, in chunks, or token by token."""


class InvariantTorchKernels(TorchKernels):
    """See `interface.Kernels` for what each operation does."""

    absorb_up_to = ALWAYS

    def linear(self, x_TI: Tensor, weight_OI: Weight) -> Tensor:
        if len(x_TI) <= 1:
            return super().linear(x_TI, weight_OI)
        return torch.cat([super(InvariantTorchKernels, self).linear(row, weight_OI) for row in torch.split(x_TI, 1)])

    def route(
        self, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, config: RouterConfig
    ) -> tuple[Tensor, Tensor]:
        if len(x_TD) <= 1:
            return super().route(x_TD, weight_ED, bias_E, config)
        each = [
            super(InvariantTorchKernels, self).route(row, weight_ED, bias_E, config) for row in torch.split(x_TD, 1)
        ]
        ids, weights = zip(*each, strict=True)
        return torch.cat(ids), torch.cat(weights)

    def experts(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, experts: SwiGLU) -> Tensor:
        if len(x_TD) <= 1:
            return super().experts(x_TD, slots_TK, weights_TK, experts)
        rows = zip(torch.split(x_TD, 1), torch.split(slots_TK, 1), torch.split(weights_TK, 1), strict=True)
        return torch.cat([super(InvariantTorchKernels, self).experts(*row, experts) for row in rows])

    def absorbed_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, expansion: Expansion
    ) -> Tensor:
        attend = super().absorbed_attention
        tokens, lengths = part.tokens_BQ.flatten().tolist(), part.lengths_BQ.flatten().tolist()
        outputs = []
        for index, (token, length) in enumerate(zip(tokens, lengths, strict=True)):
            row = slice(index // part.tokens_BQ.shape[1], index // part.tokens_BQ.shape[1] + 1)
            alone = replace(
                part,
                tokens_BQ=part.tokens_BQ.new_zeros(1, 1),
                lengths_BQ=part.lengths_BQ.new_full((1, 1), length),
                blocks_BP=part.blocks_BP[row, : -(-length // part.block_size)],
                context=length,
            )
            own = slice(token, token + 1)
            outputs.append(attend(q_nope_THN[own], q_rope_THR[own], cache_SW, alone, expansion))
        return torch.cat(outputs)
