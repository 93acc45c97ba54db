"""One decoder layer, and the MTP layer that drafts the token after next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.model.attention import Attention
from deepseek_runtime.model.step import Step


@dataclass(frozen=True, slots=True)
class Stream:
    """Hidden states between layers: the residual [T, D], and what the last layer added but nobody summed yet.

    Kept apart so that the sum and the next norm are one operation.
    """

    residual_TD: Tensor
    added_TD: Tensor | None = None

    def normed(self, kernels: Kernels, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The summed residual and its normalised form."""
        if self.added_TD is None:
            return self.residual_TD, kernels.rms_norm(self.residual_TD, weight_D, eps)
        return kernels.add_rms_norm(self.residual_TD, self.added_TD, weight_D, eps)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """`reduce_attention` sums the heads of all ranks where they are split."""

    input_norm: Tensor
    attention: Attention
    post_norm: Tensor
    feed_forward: Callable[[Tensor], Tensor]
    eps: float
    group: Group
    kernels: Kernels
    reduce_attention: bool

    def __call__(self, stream: Stream, step: Step, cache_SW: Tensor) -> Stream:
        residual, normed = stream.normed(self.kernels, self.input_norm, self.eps)
        attended = self.attention(normed, step, cache_SW)
        if self.reduce_attention:
            attended = self.group.all_reduce_sum(attended)
        residual, normed = self.kernels.add_rms_norm(residual, attended, self.post_norm, self.eps)
        return Stream(residual, self.feed_forward(normed))


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

    def __call__(self, hidden_TD: Tensor, next_embedded_TD: Tensor, step: Step, cache_SW: Tensor) -> Tensor:
        """[T, D] after this layer's own norm: ready for the head, and for drafting one token further."""
        kernels, eps = self.layer.kernels, self.layer.eps
        embedded = kernels.rms_norm(next_embedded_TD, self.embedding_norm, eps)
        joined = torch.cat((embedded, kernels.rms_norm(hidden_TD, self.hidden_norm, eps)), dim=-1)
        stream = self.layer(Stream(kernels.linear(joined, self.projection)), step, cache_SW)
        return stream.normed(kernels, self.head_norm, eps)[1]
