"""The operations over the C++ library. What it does not cover is left to plain torch, call by call."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from deepseek_runtime.kernels.cpu.structures import (
    TYPES,
    Descriptions,
    Expansion,
    Matrix,
    Paging,
    Queries,
    Routing,
    SwiGLU,
)
from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.kernels.interface import Expansion as ExpansionWeights
from deepseek_runtime.kernels.interface import Latents
from deepseek_runtime.kernels.interface import SwiGLU as SwiGLUWeights
from deepseek_runtime.kernels.invariant import ALWAYS
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed, Expanded

COMPUTE_TYPES = (torch.float32, torch.bfloat16)

COVERED = {(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float8_e4m3fn)} | {
    (torch.float32, weight) for weight in TYPES
}
"""Types of activations and weights that the library multiplies."""

QUERIES = 32
"""Queries of a sequence that are attended together in the absorbed form, which bounds its memory."""


class CpuKernels(TorchKernels):
    """See `interface.Kernels` for what each operation does.

    The order of every sum follows from the shape of a weight, or from a query's own length, so that all operations are
    batch-invariant but for the two forms of attention, which differ: `batch_invariant` uses the absorbed one alone.
    """

    decodes_fp8 = True

    def __init__(self, library: ctypes.CDLL, *, batch_invariant: bool = False) -> None:
        if batch_invariant:
            self.absorb_up_to = ALWAYS
        self._library = library
        self._matrices = Descriptions(Matrix.of)
        self._layers = Descriptions(SwiGLU.of)
        self._expansions = Descriptions(Expansion.of)
        self._routing: dict[RouterConfig, Routing] = {}
        self._paging: tuple[Absorbed | None, int, object] = (None, 0, None)

    def linear(self, x_TI: Tensor, weight_OI: Weight) -> Tensor:
        values = weight_OI.values if isinstance(weight_OI, Fp8Weight) else weight_OI
        if not _covers(x_TI, values):
            return super().linear(x_TI, weight_OI)
        tokens = x_TI.shape[0]
        out = x_TI.new_empty(tokens, values.shape[0])
        matrix = self._matrices.pointer(values, weight_OI)
        self._library.dsv3_linear(
            *(out.data_ptr(), x_TI.data_ptr(), TYPES[x_TI.dtype], x_TI.stride(0), tokens, matrix),
            torch.get_num_threads(),
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dim() != 2 or not _same_types(x, weight):
            return super().rms_norm(x, weight, eps)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._norm(out, 0, x, 0, weight, eps)
        return out

    def add_rms_norm(self, residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if not (_same_types(residual_TD, x_TD, weight_D) and x_TD.is_contiguous()):
            return super().add_rms_norm(residual_TD, x_TD, weight_D, eps)
        summed, out = torch.empty_like(x_TD), torch.empty_like(x_TD)
        self._norm(out, summed.data_ptr(), residual_TD, x_TD.data_ptr(), weight_D, eps)
        return summed, out

    def _norm(self, out: Tensor, summed: int, x: Tensor, added: int, weight: Tensor, eps: float) -> None:
        rows, width = x.shape
        self._library.dsv3_rms_norm(
            *(out.data_ptr(), summed, x.data_ptr(), added, weight.data_ptr(), eps),
            *(rows, x.stride(0), width, TYPES[x.dtype], torch.get_num_threads()),
        )

    def route(
        self, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, config: RouterConfig
    ) -> tuple[Tensor, Tensor]:
        biased = bias_E is None or bias_E.dtype == torch.float32
        if weight_ED.dtype != torch.float32 or not biased or x_TD.dtype not in TYPES or x_TD.stride(-1) != 1:
            return super().route(x_TD, weight_ED, bias_E, config)
        tokens = x_TD.shape[0]
        ids = torch.empty(tokens, config.chosen, dtype=torch.int64)
        weights = torch.empty(tokens, config.chosen, dtype=torch.float32)
        routing = self._routing.get(config) or self._routing.setdefault(config, Routing.of(config))
        self._library.dsv3_route(
            *(ids.data_ptr(), weights.data_ptr(), x_TD.data_ptr(), TYPES[x_TD.dtype], x_TD.stride(0), tokens),
            0 if bias_E is None else bias_E.data_ptr(),
            self._matrices.pointer(weight_ED, weight_ED),
            ctypes.addressof(routing),
            torch.get_num_threads(),
        )
        return ids, weights

    def swiglu(self, x_TD: Tensor, weights: SwiGLUWeights) -> Tensor:
        gate = _values(weights.gate)
        if not _covers(x_TD, gate) or not _one_type(weights):
            return super().swiglu(x_TD, weights)
        out = x_TD.new_empty(x_TD.shape[0], weights.down.shape[0])
        self._library.dsv3_swiglu(
            *(out.data_ptr(), x_TD.data_ptr(), TYPES[x_TD.dtype], x_TD.stride(0), x_TD.shape[0]),
            self._layers.pointer(gate, weights),
            torch.get_num_threads(),
        )
        return out

    def experts(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, experts: SwiGLUWeights) -> Tensor:
        gate = _values(experts.gate)
        if not _covers(x_TD, gate) or not _one_type(experts):
            return super().experts(x_TD, slots_TK, weights_TK, experts)
        slots_TK, weights_TK = slots_TK.contiguous(), weights_TK.contiguous()
        tokens, choices = slots_TK.shape
        out = torch.empty(tokens, experts.down.shape[1], dtype=torch.float32)
        self._library.dsv3_experts(
            *(out.data_ptr(), x_TD.data_ptr(), TYPES[x_TD.dtype], x_TD.stride(0), tokens),
            *(slots_TK.data_ptr(), weights_TK.data_ptr(), choices, gate.shape[0]),
            self._layers.pointer(gate, experts),
            torch.get_num_threads(),
        )
        return out

    def rotate(self, x_THR: Tensor, rotations_T: Tensor) -> Tensor:
        if x_THR.dtype not in TYPES or x_THR.stride(2) != 1:
            return super().rotate(x_THR, rotations_T)
        out = torch.empty(x_THR.shape, dtype=x_THR.dtype)
        tokens, heads, width = x_THR.shape
        strides = x_THR.stride()
        self._library.dsv3_rotate(
            *(out.data_ptr(), x_THR.data_ptr(), rotations_T.data_ptr(), tokens, heads, width, strides[0], strides[1]),
            *(TYPES[x_THR.dtype], torch.get_num_threads()),
        )
        return out

    def write_latents(self, joined_TW: Tensor, norm_C: Tensor, eps: float, where: Latents) -> None:
        if not _same_types(joined_TW, norm_C, where.cache_SW):
            super().write_latents(joined_TW, norm_C, eps, where)
            return
        tokens, width = joined_TW.shape
        latent = norm_C.shape[0]
        self._library.dsv3_write_latents(
            *(where.cache_SW.data_ptr(), where.slots_T.data_ptr(), joined_TW.data_ptr(), norm_C.data_ptr(), eps),
            *(where.rotations_T.data_ptr(), tokens, joined_TW.stride(0), latent, width - latent),
            *(TYPES[joined_TW.dtype], torch.get_num_threads()),
        )

    def absorbed_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, expansion: ExpansionWeights
    ) -> Tensor:
        if not _same_types(q_nope_THN, q_rope_THR, cache_SW, expansion.w_uk_HNC):
            return super().absorbed_attention(q_nope_THN, q_rope_THR, cache_SW, part, expansion)
        if part.tokens_BQ.shape[1] > QUERIES:
            return self._absorbed_in_slices(q_nope_THN, q_rope_THR, cache_SW, part, expansion)
        values = expansion.w_uv_HVC
        out = torch.empty(part.tokens_BQ.numel(), *values.shape[:2], dtype=q_nope_THN.dtype)
        queries = Queries.of(q_nope_THN, q_rope_THR)
        self._library.dsv3_absorbed_attention(
            *(out.data_ptr(), ctypes.addressof(queries), cache_SW.data_ptr(), self._paging_of(part)),
            self._expansions.pointer(values, expansion),
            *(TYPES[out.dtype], torch.get_num_threads()),
        )
        return out

    def _absorbed_in_slices(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, expansion: ExpansionWeights
    ) -> Tensor:
        """The first queries of all sequences, then more of those that have more: the others repeat their last."""
        sequences, queries = part.tokens_BQ.shape
        out_BQHV = q_nope_THN.new_empty(sequences, queries, *expansion.w_uv_HVC.shape[:2])
        for start, stop in pairwise([0, *range(1, queries, QUERIES), queries]):
            tokens_BQ = part.tokens_BQ[:, start:stop]
            more_B = (tokens_BQ[:, 0] != part.tokens_BQ[:, max(start - 1, 0)]) | (start == 0)
            some = replace(
                part,
                tokens_BQ=tokens_BQ[more_B],
                lengths_BQ=part.lengths_BQ[more_B, start:stop],
                blocks_BP=part.blocks_BP[more_B],
                covers_step=False,
            )
            attended = self.absorbed_attention(q_nope_THN, q_rope_THR, cache_SW, some, expansion)
            out_BQHV[more_B, start:stop] = attended.view(-1, stop - start, *out_BQHV.shape[2:])
            if start:
                out_BQHV[~more_B, start:stop] = out_BQHV[~more_B, start - 1 : start]
        return out_BQHV.flatten(0, 1)

    def expanded_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Expanded, expansion: ExpansionWeights
    ) -> Tensor:
        if not _same_types(q_nope_THN, q_rope_THR, cache_SW, expansion.w_uk_HNC):
            return super().expanded_attention(q_nope_THN, q_rope_THR, cache_SW, part, expansion)
        values, tokens = expansion.w_uv_HVC, part.stop - part.start
        out = torch.empty(tokens, *values.shape[:2], dtype=q_nope_THN.dtype)
        queries = Queries.of(q_nope_THN[part.start :], q_rope_THR[part.start :])
        self._library.dsv3_expanded_attention(
            *(out.data_ptr(), ctypes.addressof(queries), cache_SW.data_ptr(), part.slots_S.data_ptr()),
            *(part.slots_S.shape[0], tokens, self._expansions.pointer(values, expansion)),
            *(TYPES[out.dtype], torch.get_num_threads()),
        )
        return out

    def _paging_of(self, part: Absorbed) -> int:
        """All layers of a step share one part: it is described once."""
        known, pointer, _ = self._paging
        if known is not part:
            paging = Paging.of(part)
            pointer = ctypes.addressof(paging)
            self._paging = (part, pointer, paging)
        return pointer


def _values(weight: Weight) -> Tensor:
    return weight.values if isinstance(weight, Fp8Weight) else weight


def _one_type(weights: SwiGLUWeights) -> bool:
    return _values(weights.gate).dtype == _values(weights.up).dtype == _values(weights.down).dtype


def _covers(x: Tensor, values: Tensor) -> bool:
    return (x.dtype, values.dtype) in COVERED and x.dim() == 2 and x.stride(1) == 1


def _same_types(first: Tensor, *others: Tensor) -> bool:
    """Whether all are of one type that the library computes in, with rows that are contiguous."""
    dtype = first.dtype
    if dtype not in COMPUTE_TYPES or first.stride(-1) != 1:
        return False
    return all(other.dtype == dtype for other in others)
