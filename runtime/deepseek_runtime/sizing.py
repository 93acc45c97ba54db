"""Does it fit? Bytes of weights and of cache per rank, from the shapes alone, before a byte of weights is read.

Only the standard library: the operator imports this module to refuse a layout with numbers, the runtime for its cache.
GB is 10⁹ bytes, GiB is 2³⁰; memory is per accelerator (one rank), tokens are of the whole group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

GIB = 2**30
BLOCK = 128
"""Rows and columns that share one FP8 scale."""
CACHE_VALUE_BYTES = 2
USABLE_FRACTION = 0.92
"""Share of an accelerator's memory that a process may plan with; the rest is driver, context and fragmentation."""
RESERVE_BYTES = 6 * GIB
"""Activations, graphs, communication buffers, and what is held wider than stored: kv_b in BF16, the router in F32."""
MIN_CACHE_TOKENS = 4096
"""A group whose cache holds less than this is of no use, so it does not fit."""
MAX_NODES = 64

Attention = Literal["tensor", "data"]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A kind of device. `fp8` tells whether it multiplies FP8; without, blocks are dequantised at use."""

    memory_bytes: int
    fp8: bool


def _device(mebibytes: int, *, fp8: bool) -> Accelerator:
    return Accelerator(mebibytes * 2**20, fp8)


# Mebibytes as nvidia-smi and amd-smi report them; the seller's figure is a little more or less.
ACCELERATORS: dict[str, Accelerator] = {
    "A100-80GB": _device(81920, fp8=False),
    "A800-80GB": _device(81920, fp8=False),
    "L40S": _device(46068, fp8=True),
    "H20": _device(97871, fp8=True),
    "H20-141GB": _device(143771, fp8=True),
    "H100": _device(81559, fp8=True),
    "H800": _device(81559, fp8=True),
    "H200": _device(143771, fp8=True),
    "B200": _device(183359, fp8=True),
    "GB200": _device(189471, fp8=True),
    "B300": _device(275040, fp8=True),
    "MI300X": _device(196592, fp8=True),
    "MI325X": _device(262128, fp8=True),
    "MI350X": _device(294896, fp8=True),
    "MI355X": _device(294896, fp8=True),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model that decide sizes. `quantised` means FP8 blocks with one F32 scale each."""

    hidden_size: int
    vocab_size: int
    layers: int
    dense_layers: int
    mtp_layers: int
    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    experts: int
    shared_experts: int
    quantised: bool
    max_position: int

    def dequantised(self) -> ModelShape:
        """The same model held in BF16."""
        return replace(self, quantised=False)

    @property
    def moe_layers(self) -> int:
        """Main layers with routed experts."""
        return self.layers - self.dense_layers

    @property
    def kv_bytes_per_token(self) -> int:
        """Latent and rotated key of one token over all layers, the MTP layer included. TP does not split it."""
        return (self.layers + self.mtp_layers) * (self.kv_lora_rank + self.qk_rope_head_dim) * CACHE_VALUE_BYTES

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all tensors on disk, with the MTP layer's copies of embedding and head."""
        copies = self.mtp_layers * 2 * self._table
        return copies + weight_bytes(self, Layout(nodes=1, per_node=1, attention="data"))

    @property
    def expert_bytes(self) -> int:
        """One routed expert of one layer."""
        return self._mlp(self.moe_intermediate_size)

    @property
    def _table(self) -> int:
        return self.vocab_size * self.hidden_size * 2

    def _matrix(self, rows: int, columns: int) -> int:
        if not self.quantised:
            return rows * columns * 2
        return rows * columns + math.ceil(rows / BLOCK) * math.ceil(columns / BLOCK) * 4

    def _mlp(self, width: int) -> int:
        return 2 * self._matrix(width, self.hidden_size) + self._matrix(self.hidden_size, width)

    def _attention_by_heads(self) -> int:
        query = self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        expanded = self.heads * (self.qk_nope_head_dim + self.v_head_dim)
        return (
            self._matrix(query, self.q_lora_rank or self.hidden_size)
            + self._matrix(expanded, self.kv_lora_rank)
            + self._matrix(self.hidden_size, self.heads * self.v_head_dim)
        )

    def _attention_shared(self) -> int:
        down = self._matrix(self.kv_lora_rank + self.qk_rope_head_dim, self.hidden_size)
        norms = 2 * (self.kv_lora_rank + 2 * self.hidden_size)
        if self.q_lora_rank is None:
            return down + norms
        return down + norms + self._matrix(self.q_lora_rank, self.hidden_size) + 2 * self.q_lora_rank


@dataclass(frozen=True, slots=True)
class Layout:
    """How a group of `nodes` × `per_node` ranks holds one copy of the model. Routed experts are split over all ranks.

    `attention`: "tensor" splits the heads over the ranks, which all hold the same cache; "data" gives each rank whole
    attention and its own requests. `split_dense`: tensor mode also splits shared experts, dense layers,
    embedding and head, which the native engine does not do.
    """

    nodes: int
    per_node: int
    attention: Attention = "tensor"
    redundant_experts: int = 0
    split_dense: bool = True

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    def __str__(self) -> str:
        size = f"{self.nodes} node{'s' * (self.nodes > 1)} × {self.per_node}"
        redundant = f", {self.redundant_experts} redundant experts" if self.redundant_experts else ""
        return f"{size} ({self.attention} attention, EP{self.ranks}{redundant})"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a layout needs and leaves. `needed` counts weights, reserve and the least useful cache, per rank."""

    layout: Layout
    fits: bool
    weight_bytes: int
    needed: int
    available: int
    kv_tokens: int
    sentence: str


def weight_bytes(shape: ModelShape, layout: Layout) -> int:
    """Bytes of weights that one rank of a layout holds (embedding and head are not held twice for the MTP layer)."""
    blocks = shape.layers + shape.mtp_layers
    moe_layers = shape.moe_layers + shape.mtp_layers
    tensor = layout.ranks if layout.attention == "tensor" else 1
    dense = tensor if layout.split_dense else 1
    experts = math.ceil((shape.experts + layout.redundant_experts) / layout.ranks)
    router = shape.experts * (shape.hidden_size * 2 + 4)
    split = shape.moe_layers + shape.mtp_layers, shape._mlp(shape.moe_intermediate_size * shape.shared_experts)
    total = blocks * (shape._attention_shared() + math.ceil(shape._attention_by_heads() / tensor))
    total += moe_layers * (router + experts * shape.expert_bytes)
    total += math.ceil(split[0] * split[1] / dense)
    total += math.ceil(shape.dense_layers * shape._mlp(shape.intermediate_size) / dense)
    total += math.ceil(2 * shape._table / dense) + 2 * shape.hidden_size
    total += shape.mtp_layers * 2 * shape.hidden_size * (2 * shape.hidden_size + 3)
    return total


def layout_problem(shape: ModelShape, layout: Layout) -> str | None:
    """Why a layout cannot divide the model, with the next size that can; None where it can."""
    return next(_problems(shape, layout), None)


def _problems(shape: ModelShape, layout: Layout) -> Iterator[str]:
    ranks, experts = layout.ranks, shape.experts + layout.redundant_experts
    if experts % ranks and layout.redundant_experts:
        valid = next_redundant(shape.experts, layout.redundant_experts, ranks)
        yield (
            f"{shape.experts} + {layout.redundant_experts} redundant experts do not divide over {ranks} ranks; "
            f"the next valid number of redundant experts is {valid}"
        )
    elif experts % ranks:
        valid = next_divisor(experts, ranks)
        yield f"{experts} experts do not divide over {ranks} ranks; the next valid size is {valid}"
    if layout.attention != "tensor":
        return
    if shape.heads % ranks:
        valid = next_divisor(shape.heads, ranks)
        yield (
            f"{shape.heads} attention heads do not divide over {ranks} ranks; the next valid size is {valid}, "
            "or choose data attention"
        )
    if layout.split_dense:
        yield from _grid_problems(shape, ranks)


def _grid_problems(shape: ModelShape, ranks: int) -> Iterator[str]:
    widths = {
        "mlp.shared_experts.gate_proj": shape.moe_intermediate_size * shape.shared_experts,
        "mlp.gate_proj": shape.intermediate_size if shape.dense_layers else 0,
    }
    for name, width in widths.items():
        unit = BLOCK if shape.quantised else 1
        if width % (unit * ranks):
            valid = next_divisor(width // unit, ranks) if width >= unit else 1
            yield (
                f"{name} has {width} rows: {width / ranks:g} for each of {ranks} ranks breaks its grid of {unit}; "
                f"the next valid size is {valid}, or choose data attention"
            )


def next_redundant(experts: int, redundant: int, ranks: int) -> int:
    """The smallest number of redundant experts, from `redundant` on, with which all divide over the ranks."""
    return redundant + -(experts + redundant) % ranks


def with_even_redundancy(shape: ModelShape, layout: Layout) -> Layout:
    """The layout with the next number of redundant experts that divides over its ranks; none stays none."""
    wanted = layout.redundant_experts
    even = next_redundant(shape.experts, wanted, layout.ranks) if wanted else 0
    return replace(layout, redundant_experts=even)


def next_divisor(total: int, ranks: int) -> int:
    """The divisor of `total` nearest above `ranks`, or the largest one (`total` itself) where none is above."""
    return next((n for n in range(ranks, total + 1) if total % n == 0), total)


def estimate(
    shape: ModelShape,
    layout: Layout,
    memory_bytes: int,
    *,
    min_cache_tokens: int = MIN_CACHE_TOKENS,
    reserve_bytes: int = RESERVE_BYTES,
) -> Estimate:
    """Weigh a layout against accelerators of `memory_bytes` each; never raises, the sentence tells all."""
    weights = weight_bytes(shape, layout)
    available = int(memory_bytes * USABLE_FRACTION)
    needed = weights + reserve_bytes + min_cache_tokens * shape.kv_bytes_per_token
    copies = layout.ranks if layout.attention == "data" else 1
    tokens = max(available - reserve_bytes - weights, 0) // shape.kv_bytes_per_token * copies
    problem = layout_problem(shape, layout)
    fits = problem is None and needed <= available
    sentence = problem or _sentence(
        layout, fits=fits, weights=weights, needed=needed, available=available, tokens=tokens
    )
    return Estimate(layout, fits, weights, needed, available, tokens if fits else 0, sentence)


def _sentence(layout: Layout, *, fits: bool, weights: int, needed: int, available: int, tokens: int) -> str:
    if fits:
        return (
            f"{layout} fits: {weights / GIB:.1f} GiB of weights per accelerator of {available / GIB:.1f} GiB usable, "
            f"cache for {tokens:,} tokens"
        )
    return (
        f"{layout} does not fit: each accelerator needs {needed / GIB:.1f} GiB "
        f"({weights / GIB:.1f} GiB of them weights) and has {available / GIB:.1f} GiB usable"
    )


def smallest_nodes(
    shape: ModelShape,
    layout: Layout,
    memory_bytes: int,
    *,
    min_cache_tokens: int = MIN_CACHE_TOKENS,
    reserve_bytes: int = RESERVE_BYTES,
) -> Estimate | None:
    """The estimate of the fewest nodes that fit, all else as in `layout`; None up to MAX_NODES."""
    for nodes in range(1, MAX_NODES + 1):
        tried = estimate(
            shape,
            replace(layout, nodes=nodes),
            memory_bytes,
            min_cache_tokens=min_cache_tokens,
            reserve_bytes=reserve_bytes,
        )
        if tried.fits:
            return tried
    return None


def advise(shape: ModelShape, layout: Layout, memory_bytes: int) -> str:
    """The sentence on a layout; for one that does not fit, with the nearest that does."""
    judged = estimate(shape, layout, memory_bytes)
    if judged.fits:
        return judged.sentence
    near = with_even_redundancy(shape, layout)
    found = [
        smallest_nodes(shape, replace(near, attention=a), memory_bytes) for a in (layout.attention, "tensor", "data")
    ]
    best = min((e for e in found if e), key=lambda e: e.layout.nodes, default=None)
    nearest = best.sentence if best else f"no layout of up to {MAX_NODES} nodes of this accelerator fits"
    return f"{judged.sentence}. Nearest: {nearest}"


DEEPSEEK_V3_671B = ModelShape(
    hidden_size=7168,
    vocab_size=129280,
    layers=61,
    dense_layers=3,
    mtp_layers=1,
    heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    experts=256,
    shared_experts=1,
    quantised=True,
    max_position=163840,
)
DEEPSEEK_V2_LITE = ModelShape(
    hidden_size=2048,
    vocab_size=102400,
    layers=27,
    dense_layers=1,
    mtp_layers=0,
    heads=16,
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    experts=64,
    shared_experts=2,
    quantised=False,
    max_position=163840,
)

_V3_NAMES = ("V3", "V3-Base", "V3-0324", "V3.1", "V3.1-Base", "V3.1-Terminus", "R1", "R1-0528", "R1-Zero")
KNOWN_SHAPES: dict[str, ModelShape] = {
    **{f"deepseek-ai/DeepSeek-{name}": DEEPSEEK_V3_671B for name in _V3_NAMES},
    **{f"deepseek-ai/DeepSeek-{name}": DEEPSEEK_V2_LITE for name in ("V2-Lite", "V2-Lite-Chat")},
}


def known_shape(hub_name: str) -> ModelShape | None:
    """The shape of a model by its hub name (case does not matter), None where it is not listed."""
    return {name.lower(): shape for name, shape in KNOWN_SHAPES.items()}.get(hub_name.lower())


def accelerator(product: str) -> Accelerator | None:
    """The catalogue's entry of a product (case does not matter), None where it is not listed."""
    return {name.lower(): device for name, device in ACCELERATORS.items()}.get(product.lower())
