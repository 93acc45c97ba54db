"""One decoder layer, and the MTP layer that drafts the token after next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Weight, linear
from deepseek_runtime.kernels.norm import rms_norm
from deepseek_runtime.model.attention import Attention
from deepseek_runtime.model.step import Step


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """x [T, D] → [T, D]. `reduce_attention` sums the heads of all ranks where they are split."""

    input_norm: Tensor
    attention: Attention
    post_norm: Tensor
    feed_forward: Callable[[Tensor], Tensor]
    eps: float
    group: Group
    reduce_attention: bool

    def __call__(self, x_TD: Tensor, step: Step, cache_SW: Tensor) -> Tensor:
        attended = self.attention(rms_norm(x_TD, self.input_norm, self.eps), step, cache_SW)
        if self.reduce_attention:
            attended = self.group.all_reduce_sum(attended)
        x_TD = x_TD + attended
        return x_TD + self.feed_forward(rms_norm(x_TD, self.post_norm, self.eps))


@dataclass(frozen=True, slots=True)
class MTPLayer:
    """Hidden state of position i (after the final norm) and embedding of token i + 1 to the state that predicts i + 2.

    The embedding comes first in the concatenation, as the released weights want, not as the paper's formula is written.
    """

    embedding_norm: Tensor
    hidden_norm: Tensor
    projection: Weight
    layer: DecoderLayer
    head_norm: Tensor
    eps: float

    def __call__(self, hidden_TD: Tensor, next_embedded_TD: Tensor, step: Step, cache_SW: Tensor) -> Tensor:
        """[T, D] after this layer's own norm: ready for the head, and for drafting one token further."""
        embedded = rms_norm(next_embedded_TD, self.embedding_norm, self.eps)
        joined = torch.cat((embedded, rms_norm(hidden_TD, self.hidden_norm, self.eps)), dim=-1)
        return rms_norm(self.layer(linear(joined, self.projection), step, cache_SW), self.head_norm, self.eps)
