"""The whole model of one rank: embedding, layers, head, and the MTP layer for drafts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.model.assemble import Assembler
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.layers import DecoderLayer, Stream
from deepseek_runtime.model.moe import MoE
from deepseek_runtime.model.parallelize import Shard
from deepseek_runtime.model.rebalance import THRESHOLD, Balance, rebalance
from deepseek_runtime.model.rope import Rope
from deepseek_runtime.model.step import Step, plan_step


class DeepSeekV3Model:
    """Maths of this rank's heads and experts. All ranks of the group must be called alike.

    They are called with the same batch; with data attention each with its own, which may be empty.
    """

    def __init__(self, shard: Shard, weights: Mapping[str, Weight], group: Group, kernels: Kernels) -> None:
        self.config = shard.config
        self._group = group
        self.kernels = kernels
        self.absorb_up_to = kernels.absorb_up_to
        """Longest query that takes the absorbed form."""
        parts = Assembler(shard, weights, group, kernels)
        self._embedding = parts.dense("model.embed_tokens.weight")
        self._layers = [parts.decoder_layer(index) for index in range(self.config.num_layers)]
        self._mtp = parts.mtp_layer(self.config.num_layers) if self.config.num_mtp_layers else None
        self._norm = parts.dense("model.norm.weight")
        self._head = parts.dense("lm_head.weight")
        self._rope = Rope(self.config, self.device)

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    @property
    def capturable(self) -> bool:
        """Whether `run` looks at nothing on the host, so that a graph can record it: not while tokens travel."""
        return not any(moe.exchange for moe in self._moes(self._all_layers))

    @property
    def dtype(self) -> torch.dtype:
        """The type of hidden states."""
        return self._embedding.dtype

    @torch.inference_mode()
    def forward(self, batch: StepBatch, cache: LatentCache) -> Tensor:
        """Hidden states [T, D] after the final norm; the latents of the batch's tokens are written to the cache."""
        if not len(batch.token_ids):
            return self._serve(self._layers, self._embedding[:0])
        return self.run(batch.token_ids, self._plan(batch, cache), cache)

    @torch.inference_mode()
    def run(self, token_ids_T: Tensor, step: Step, cache: LatentCache) -> Tensor:
        """`forward` of at least one token in a step that is laid out already."""
        stream = Stream(functional.embedding(token_ids_T, self._embedding))
        for index, layer in enumerate(self._layers):
            stream = layer(stream, step, cache.layer(index))
        return stream.normed(self.kernels, self._norm, self.config.rms_norm_eps)[1]

    def rotations(self, positions_T: Tensor) -> Tensor:
        """The positions' rotations [T, R / 2] complex64, as a step wants them."""
        return self._rope.rotations(positions_T)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] float32 of hidden states [N, D]. Ids above the tokenizer's last are only padding."""
        return self.kernels.linear(hidden, self._head).float()

    @torch.inference_mode()
    def draft_hidden(self, hidden: Tensor, next_token_ids: Tensor, batch: StepBatch, cache: LatentCache) -> Tensor:
        """States [T, D] that predict the token after next, filling the MTP layer's cache.

        `hidden` [T, D] is what `forward` returned for the batch, or this method did for a draft one token further;
        `next_token_ids` [T] are the batch's tokens shifted by one. ValueError if the model has no MTP layer.
        """
        if self._mtp is None:
            raise ValueError("no MTP layer to draft with: the checkpoint has none, or it was loaded without")
        if not len(hidden):
            return self._serve([self._mtp.layer], hidden)
        embedded = functional.embedding(next_token_ids, self._embedding)
        return self._mtp(hidden, embedded, self._plan(batch, cache), cache.layer(self.config.num_layers))

    def draft_logits(
        self, hidden: Tensor, next_token_ids: Tensor, batch: StepBatch, cache: LatentCache
    ) -> tuple[Tensor, Tensor]:
        """Logits [T, V] float32 for the token after next, and the states they come from (see `draft_hidden`)."""
        drafted = self.draft_hidden(hidden, next_token_ids, batch, cache)
        return self.logits(drafted), drafted

    def forget_choices(self) -> None:
        """Count anew how often experts are chosen, so that the next `rebalance` sees nothing of what ran before."""
        for moe in self._moes(self._all_layers):
            moe.table.chosen_E.zero_()

    @torch.inference_mode()
    def rebalance(self, threshold: float = THRESHOLD) -> Balance:
        """Move experts so that the ranks have equal work, if they have not. All ranks call it, between two steps."""
        return rebalance(self._moes(self._all_layers), self._group, threshold)

    @property
    def _all_layers(self) -> list[DecoderLayer]:
        return [*self._layers, *([self._mtp.layer] if self._mtp else [])]

    @staticmethod
    def _moes(layers: Iterable[DecoderLayer]) -> list[MoE]:
        return [layer.feed_forward for layer in layers if isinstance(layer.feed_forward, MoE)]

    def _serve(self, layers: Iterable[DecoderLayer], nothing_0D: Tensor) -> Tensor:
        """A step without tokens of this rank: its experts may still be visited. All other kernels are left out."""
        for moe in self._moes(layers):
            if moe.exchange:
                moe.serve(nothing_0D)
        return nothing_0D

    def _plan(self, batch: StepBatch, cache: LatentCache) -> Step:
        return plan_step(batch, self.rotations(batch.positions), cache.block_size, self.absorb_up_to)
