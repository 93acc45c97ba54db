"""Absorbed attention over the paged latent cache: many query heads, one key head whose first C values are the value.

Keys are split over programs, each with a softmax of its own; a second kernel merges them by log-sum-exp. How many
splits there are follows from the batch's shape, where they lie from each sequence's length on the device: nothing that
the host must know changes from step to step, so that a captured graph stays valid.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one.
from __future__ import annotations

import torch
from torch import Tensor

from deepseek_runtime.kernels.triton.hardware import Hardware, upcasts
from deepseek_runtime.kernels.triton.language import cdiv, kernel, next_power, tl
from deepseek_runtime.kernels.triton.softmax import add_keys
from deepseek_runtime.model.step import Absorbed

HEADS = 16
"""Heads of one program: the fewest rows that a matrix instruction takes."""
KEYS = 32
"""Keys that are read at a time."""
QUERIES_AT_ONCE = 128
"""Query tokens of one launch, which bounds the memory of split results: 0.5 GB for V3's heads in 16 splits."""
MOST_SPLITS = 32
INVARIANT_SPLITS = 16
"""Splits where results must not depend on the batch."""
PROGRAMS_PER_UNIT = 2


def splits(queries: int, heads: int, hardware: Hardware, *, batch_invariant: bool) -> int:
    """Splits of the keys: enough programs for every multiprocessor."""
    if batch_invariant:
        return INVARIANT_SPLITS
    programs = min(queries, QUERIES_AT_ONCE) * cdiv(heads, HEADS)
    return next_power(min(cdiv(hardware.units * PROGRAMS_PER_UNIT, programs), MOST_SPLITS), 1)


def absorbed_attention(
    queries: tuple[Tensor, Tensor], cache_SW: Tensor, part: Absorbed, scale: float, count: int, hardware: Hardware
) -> Tensor:
    """The latent mix [B · Q, H, C] of the part's tokens, from queries absorbed [T, H, C] and rotated [T, H, R].

    Keys are read in `count` splits.
    """
    heads, latent = queries[0].shape[1:]
    total = part.tokens_BQ.numel()
    out = torch.empty(total, heads, latent, dtype=queries[0].dtype, device=cache_SW.device)
    for first in range(0, total, QUERIES_AT_ONCE):
        some = slice(first, min(first + QUERIES_AT_ONCE, total))
        partial_THSC = torch.empty(some.stop - first, heads, count, latent, dtype=torch.float32, device=cache_SW.device)
        sums_THS = torch.empty(partial_THSC.shape[:3], dtype=torch.float32, device=cache_SW.device)
        _launch(queries, cache_SW, part, (partial_THSC, sums_THS), (first, scale), hardware)
        _merge[(len(partial_THSC) * heads,)](
            partial_THSC, sums_THS, out[some], C=latent, SPLITS=count, BLOCK_C=next_power(latent)
        )
    return out


def _launch(
    queries: tuple[Tensor, Tensor],
    cache_SW: Tensor,
    part: Absorbed,
    results: tuple[Tensor, Tensor],
    scalars: tuple[int, float],
    hardware: Hardware,
) -> None:
    """Attend by as many query tokens as `results` have room for, from the first of `scalars` on."""
    absorbed_THC, rotated_THR = queries
    tokens, heads, count, latent = results[0].shape
    _attend[(tokens, cdiv(heads, HEADS), count)](
        absorbed_THC,
        rotated_THR,
        cache_SW,
        part.tokens_BQ,
        part.lengths_BQ,
        part.blocks_BP,
        *results,
        *scalars,
        part.tokens_BQ.shape[1],
        part.blocks_BP.stride(0),
        *absorbed_THC.stride()[:2],
        *rotated_THR.stride()[:2],
        cache_SW.stride(0),
        H=heads,
        C=latent,
        R=rotated_THR.shape[2],
        PAGE=part.block_size,
        SPLITS=count,
        BLOCK_H=HEADS,
        BLOCK_KEYS=KEYS,
        BLOCK_C=next_power(latent),
        BLOCK_R=next_power(rotated_THR.shape[2]),
        UPCAST=upcasts(),
        num_warps=4,
        num_stages=min(hardware.stages, 2),
    )


@kernel(
    "first_query",
    "scale",
    "per_sequence",
    "table_stride",
    "qc_token_stride",
    "qc_head_stride",
    "qr_token_stride",
    "qr_head_stride",
    "cache_stride",
)
def _attend(
    q_latent: tl.tensor,
    q_rope: tl.tensor,
    cache: tl.tensor,
    tokens: tl.tensor,
    lengths: tl.tensor,
    table: tl.tensor,
    partial: tl.tensor,
    sums: tl.tensor,
    first_query: int,
    scale: float,
    per_sequence: int,
    table_stride: int,
    qc_token_stride: int,
    qc_head_stride: int,
    qr_token_stride: int,
    qr_head_stride: int,
    cache_stride: int,
    H: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    query = first_query + tl.program_id(0)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    split = tl.program_id(2)
    live = head < H
    length = tl.load(lengths + query).to(tl.int32)
    token = tl.load(tokens + query).to(tl.int64)
    blocks = table + (query // per_sequence).to(tl.int64) * table_stride
    width = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_KEYS) * BLOCK_KEYS
    first = split * width
    last = tl.minimum(first + width, length)

    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    qc = tl.load(
        q_latent + token * qc_token_stride + head[:, None] * qc_head_stride + c[None, :],
        mask=live[:, None] & (c < C)[None, :],
        other=0.0,
    )
    qr = tl.load(
        q_rope + token * qr_token_stride + head[:, None] * qr_head_stride + r[None, :],
        mask=live[:, None] & (r < R)[None, :],
        other=0.0,
    )
    if UPCAST:
        qc, qr = qc.to(tl.float32), qr.to(tl.float32)
    peak = tl.full((BLOCK_H,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_H,), dtype=tl.float32)
    mixed = tl.zeros((BLOCK_H, BLOCK_C), dtype=tl.float32)
    for start in range(first, last, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        inside = key < last
        block = tl.load(blocks + key // PAGE, mask=inside, other=0).to(tl.int64)
        place = (block * PAGE + key % PAGE) * cache_stride
        latent = tl.load(cache + place[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0).to(
            qc.dtype
        )
        turned = tl.load(
            cache + place[None, :] + C + r[:, None], mask=inside[None, :] & (r < R)[:, None], other=0.0
        ).to(qr.dtype)
        scores = tl.dot(qc, tl.trans(latent), input_precision="ieee")
        scores += tl.dot(qr, turned, input_precision="ieee")
        scores = tl.where(inside[None, :], scores * scale, float("-inf"))
        peak, total, mixed = add_keys(scores, latent, peak, total, mixed)
    target = (tl.program_id(0).to(tl.int64) * H + head) * SPLITS + split
    seen = total > 0
    mixed = mixed / tl.where(seen, total, 1.0)[:, None]
    sum_exp = tl.where(seen, peak + tl.log(tl.where(seen, total, 1.0)), float("-inf"))
    tl.store(sums + target, sum_exp, mask=live)
    tl.store(partial + target[:, None] * C + c[None, :], mixed, mask=live[:, None] & (c < C)[None, :])


@kernel()
def _merge(
    partial: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    C: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    split = tl.arange(0, SPLITS)
    sum_exp = tl.load(sums + row * SPLITS + split)
    peak = tl.max(sum_exp, axis=0)
    norm = tl.sum(tl.exp(sum_exp - peak), axis=0)
    total = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for index in range(0, SPLITS):
        weight = tl.exp(tl.load(sums + row * SPLITS + index) - peak) / norm
        total += weight * tl.load(partial + (row * SPLITS + index) * C + c, mask=c < C, other=0.0)
    tl.store(out + row * C + c, total.to(out.dtype.element_ty), mask=c < C)
