"""Builds layers from this rank's tensors under the hub's names (routed experts stacked)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deepseek_runtime.dist.exchange import AllToAll
from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.kernels.interface import Expansion, Kernels, SwiGLU
from deepseek_runtime.model import placement
from deepseek_runtime.model.attention import Attention, AttentionWeights
from deepseek_runtime.model.experts import ExpertTable
from deepseek_runtime.model.layers import DecoderLayer, MTPLayer
from deepseek_runtime.model.moe import MoE
from deepseek_runtime.model.parallelize import Shard
from deepseek_runtime.model.rope import attention_scale


@dataclass(frozen=True, slots=True)
class Assembler:
    """`weights` holds what `Shard.slice_of` gives this rank, each in its declared precision."""

    shard: Shard
    weights: Mapping[str, Weight]
    group: Group
    kernels: Kernels

    def dense(self, name: str) -> Tensor:
        """A tensor that is never FP8 in memory."""
        weight = self.weights[name]
        assert isinstance(weight, Tensor), name
        return weight

    def decoder_layer(self, index: int) -> DecoderLayer:
        """Layer `index`; those behind the main layers are built alike."""
        prefix, config = f"model.layers.{index}", self.shard.config
        return DecoderLayer(
            input_norm=self.dense(f"{prefix}.input_layernorm.weight"),
            attention=Attention(config, self._attention(f"{prefix}.self_attn"), self.kernels),
            post_norm=self.dense(f"{prefix}.post_attention_layernorm.weight"),
            feed_forward=self._dense_mlp(f"{prefix}.mlp") if config.is_dense(index) else self._moe(f"{prefix}.mlp"),
            eps=config.rms_norm_eps,
            group=self.group,
            kernels=self.kernels,
            reduce_attention=self.shard.splits_heads,
        )

    def mtp_layer(self, index: int) -> MTPLayer:
        prefix = f"model.layers.{index}"
        return MTPLayer(
            embedding_norm=self.dense(f"{prefix}.enorm.weight"),
            hidden_norm=self.dense(f"{prefix}.hnorm.weight"),
            projection=self.weights[f"{prefix}.eh_proj.weight"],
            layer=self.decoder_layer(index),
            head_norm=self.dense(f"{prefix}.shared_head.norm.weight"),
        )

    def _attention(self, prefix: str) -> AttentionWeights:
        config = self.shard.config
        has_rank = config.q_lora_rank is not None
        kv_b_HPC = self.dense(f"{prefix}.kv_b_proj.weight").view(len(self.shard.heads), -1, config.kv_lora_rank)
        w_uk_HNC, w_uv_HVC = torch.split(kv_b_HPC, [config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return AttentionWeights(
            q_a=self.weights[f"{prefix}.q_a_proj.weight"] if has_rank else None,
            q_a_norm=self.dense(f"{prefix}.q_a_layernorm.weight") if has_rank else None,
            q_b=self.weights[f"{prefix}.{'q_b_proj' if has_rank else 'q_proj'}.weight"],
            kv_a=self.weights[f"{prefix}.kv_a_proj_with_mqa.weight"],
            kv_a_norm=self.dense(f"{prefix}.kv_a_layernorm.weight"),
            expansion=Expansion(w_uk_HNC.contiguous(), w_uv_HVC.contiguous(), attention_scale(config)),
            o=self.weights[f"{prefix}.o_proj.weight"],
        )

    def _swiglu(self, prefix: str) -> SwiGLU:
        return SwiGLU(*(self.weights[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down")))

    def _dense_mlp(self, prefix: str) -> Callable[[Tensor], Tensor]:
        return partial(self.kernels.swiglu, weights=self._swiglu(prefix))

    def _moe(self, prefix: str) -> MoE:
        config = self.shard.config
        return MoE(
            router=config.router,
            gate_ED=self.dense(f"{prefix}.gate.weight"),
            bias_E=self.dense(f"{prefix}.gate.e_score_correction_bias") if config.router.has_bias else None,
            experts=self._swiglu(f"{prefix}.experts"),
            table=self._table(),
            shared=self._swiglu(f"{prefix}.shared_experts") if config.num_shared_experts else None,
            group=self.group,
            exchange=AllToAll(self.group, len(self.shard.slots)) if self.shard.exchanges_tokens else None,
            kernels=self.kernels,
        )

    def _table(self) -> ExpertTable:
        shard = self.shard
        placed = placement.initial(shard.config.router.experts, shard.redundant_experts)
        return ExpertTable(
            placed,
            # Tokens that travel need every slot of the group, tokens that stay only those of this rank.
            window=range(len(placed)) if shard.exchanges_tokens else shard.slots,
            copies=shard.redundant_experts + 1,
            device=self.dense("model.norm.weight").device,
            counts=self.group.world_size > 1,
        )
