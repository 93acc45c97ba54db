"""Absorbed attention over the paged latent cache: many query heads, one key head whose first C values are the value.

Keys are split over programs, each with a softmax of its own; a second kernel merges them by log-sum-exp. How many
splits there are follows from the batch's shape, where they lie from each sequence's length on the device: nothing that
the host must know changes from step to step, so that a captured graph stays valid.
"""

# ruff: noqa: PLR0913, PLR0917 - a kernel takes its addresses and sizes one by one, and is one loop.
from __future__ import annotations

import torch
from torch import Tensor

from deepseek_runtime.kernels.triton.hardware import Hardware, upcasts
from deepseek_runtime.kernels.triton.language import cdiv, kernel, next_power, tl
from deepseek_runtime.kernels.triton.softmax import add_keys
from deepseek_runtime.model.step import Absorbed

ROWS = 16
"""Query rows (token and head) of one program."""
KEYS = 32
"""Keys that are read at a time."""
MOST_SPLITS = 32
INVARIANT_SPLITS = 16
"""Splits where results must not depend on the batch."""
PROGRAMS_PER_UNIT = 2


def splits(tiles: int, hardware: Hardware, *, batch_invariant: bool) -> int:
    """Splits of the keys: enough programs for every multiprocessor, given `tiles` of query rows over the batch."""
    if batch_invariant:
        return INVARIANT_SPLITS
    wanted = cdiv(hardware.units * PROGRAMS_PER_UNIT, tiles)
    return next_power(min(wanted, MOST_SPLITS), 1)


def absorbed_attention(
    q_THC: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, scale: float, count: int, hardware: Hardware
) -> Tensor:
    """The latent mix [B · Q, H, C] of the part's tokens in the queries' type; keys in `count` splits."""
    batch, queries = part.tokens_BQ.shape
    _, heads, latent = q_THC.shape
    rows = queries * heads
    partial_BRSC = torch.empty(batch, rows, count, latent, dtype=torch.float32, device=q_THC.device)
    sums_BRS = torch.empty(batch, rows, count, dtype=torch.float32, device=q_THC.device)
    _attend[(batch, cdiv(rows, ROWS), count)](
        q_THC,
        q_rope_THR,
        cache_SW,
        part.tokens_BQ,
        part.lengths_BQ,
        part.blocks_BP,
        partial_BRSC,
        sums_BRS,
        scale,
        part.blocks_BP.stride(0),
        q_THC.stride(0),
        q_THC.stride(1),
        q_rope_THR.stride(0),
        q_rope_THR.stride(1),
        cache_SW.stride(0),
        Q=queries,
        H=heads,
        C=latent,
        R=q_rope_THR.shape[2],
        PAGE=part.block_size,
        SPLITS=count,
        BLOCK_ROWS=ROWS,
        BLOCK_KEYS=KEYS,
        BLOCK_C=next_power(latent),
        BLOCK_R=next_power(q_rope_THR.shape[2]),
        UPCAST=upcasts(),
        num_warps=4,
        num_stages=min(hardware.stages, 2),
    )
    out = torch.empty(batch * queries, heads, latent, dtype=q_THC.dtype, device=q_THC.device)
    _merge[(batch * rows,)](partial_BRSC, sums_BRS, out, C=latent, SPLITS=count, BLOCK_C=next_power(latent))
    return out


@kernel(
    "scale", "table_stride", "qc_token_stride", "qc_head_stride", "qr_token_stride", "qr_head_stride", "cache_stride"
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
    scale: float,
    table_stride: int,
    qc_token_stride: int,
    qc_head_stride: int,
    qr_token_stride: int,
    qr_head_stride: int,
    cache_stride: int,
    Q: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    sequence = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    live = row < Q * H
    query = sequence * Q + row // H
    head = row % H
    length = tl.load(lengths + query, mask=live, other=0).to(tl.int32)
    token = tl.load(tokens + query, mask=live, other=0).to(tl.int64)
    # The longest row decides where splits lie, so that the rows of a tile share their keys.
    longest = tl.max(length, axis=0)
    width = tl.cdiv(tl.cdiv(longest, SPLITS), BLOCK_KEYS) * BLOCK_KEYS
    first = split * width
    last = tl.minimum(first + width, longest)

    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    qc = tl.load(
        q_latent + token[:, None] * qc_token_stride + head[:, None] * qc_head_stride + c[None, :],
        mask=live[:, None] & (c < C)[None, :],
        other=0.0,
    )
    qr = tl.load(
        q_rope + token[:, None] * qr_token_stride + head[:, None] * qr_head_stride + r[None, :],
        mask=live[:, None] & (r < R)[None, :],
        other=0.0,
    )
    if UPCAST:
        qc, qr = qc.to(tl.float32), qr.to(tl.float32)
    peak = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    mixed = tl.zeros((BLOCK_ROWS, BLOCK_C), dtype=tl.float32)
    for start in range(first, last, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        inside = key < last
        block = tl.load(table + sequence * table_stride + key // PAGE, mask=inside, other=0).to(tl.int64)
        place = (block * PAGE + key % PAGE) * cache_stride
        latent = tl.load(cache + place[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0).to(
            qc.dtype
        )
        turned = tl.load(
            cache + place[None, :] + C + r[:, None], mask=inside[None, :] & (r < R)[:, None], other=0.0
        ).to(qr.dtype)
        scores = tl.dot(qc, tl.trans(latent), input_precision="ieee")
        scores += tl.dot(qr, turned, input_precision="ieee")
        scores = tl.where(key[None, :] < tl.minimum(length, last)[:, None], scores * scale, float("-inf"))
        peak, total, mixed = add_keys(scores, latent, peak, total, mixed)
    target = (sequence * (Q * H) + row) * SPLITS + split
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
