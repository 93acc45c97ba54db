"""Every tensor of a checkpoint that the model knows: its shape, and how ranks share it. No rank is named here."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from deepseek_runtime.model.config import ModelConfig

_MTP_MARKS = ("enorm", "hnorm", "eh_proj")


class Placement(Enum):
    """How the ranks of a group share a tensor."""

    REPLICATED = "every rank holds it whole"
    HEAD_ROWS = "rows are cut by attention heads"
    HEAD_COLUMNS = "columns are cut by attention heads, so that outputs are partial sums"
    EXPERT = "one rank holds it whole, with its block of experts"


class Precision(Enum):
    """How a tensor is kept in memory."""

    AS_STORED = "FP8 blocks where the checkpoint has them, otherwise the compute type"
    COMPUTE = "the compute type, dequantised once"
    FLOAT32 = "float32, whatever the checkpoint has"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the checkpoint. `expert` is its number where it belongs to a routed expert."""

    name: str
    shape: tuple[int, ...]
    placement: Placement = Placement.REPLICATED
    precision: Precision = Precision.COMPUTE
    expert: int | None = None

    @property
    def scale_name(self) -> str:
        """Name of the tensor with its FP8 multipliers."""
        return f"{self.name}_scale_inv"

    @property
    def stack(self) -> str:
        """Name of the stack that a routed expert's matrix goes to; its own name for all others."""
        return self.name if self.expert is None else self.name.replace(f".experts.{self.expert}.", ".experts.")


def parameters(config: ModelConfig) -> Iterator[Parameter]:
    """All tensors that a model of this configuration is made of, layer by layer."""
    yield Parameter("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    for layer in range(config.num_layers):
        yield from _layer(config, layer)
    yield Parameter("model.norm.weight", (config.hidden_size,))
    yield Parameter("lm_head.weight", (config.vocab_size, config.hidden_size))
    for layer in range(config.num_layers, config.num_cache_layers):
        yield from _layer(config, layer)
        yield from _mtp(config, f"model.layers.{layer}")


def mtp_tensors(config: ModelConfig, names: Collection[str]) -> list[str]:
    """Those of the MTP layer among a checkpoint's tensors, whatever the configuration says of it.

    It is the layer behind the main ones, if that has what only an MTP layer has: otherwise it is a main layer too many.
    """
    prefix = f"model.layers.{config.num_layers}."
    if not any(f"{prefix}{mark}.weight" in names for mark in _MTP_MARKS):
        return []
    return [name for name in names if name.startswith(prefix)]


def known_surplus(config: ModelConfig, names: Collection[str]) -> set[str]:
    """The tensors that checkpoints carry and the model does without.

    The MTP layer repeats embedding and head; a model configured without MTP may still come with that layer.
    """
    prefix = f"model.layers.{config.num_layers}."
    unused = {f"{prefix}embed_tokens.weight", f"{prefix}shared_head.head.weight"}
    mtp = {name for name in mtp_tensors(config, names) if config.num_mtp_layers == 0 or name in unused}
    return mtp | {name for name in names if name.endswith(".rotary_emb.inv_freq")}


def _layer(config: ModelConfig, layer: int) -> Iterator[Parameter]:
    prefix, hidden = f"model.layers.{layer}", config.hidden_size
    yield Parameter(f"{prefix}.input_layernorm.weight", (hidden,))
    yield from _attention(config, f"{prefix}.self_attn")
    yield Parameter(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    if config.is_dense(layer):
        yield from _swiglu(hidden, config.intermediate_size, f"{prefix}.mlp")
    else:
        yield from _moe(config, f"{prefix}.mlp")


def _attention(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    hidden, latent = config.hidden_size, config.kv_lora_rank
    queries = config.num_heads * config.qk_head_dim
    stored = Precision.AS_STORED
    if config.q_lora_rank is None:
        yield Parameter(f"{prefix}.q_proj.weight", (queries, hidden), Placement.HEAD_ROWS, stored)
    else:
        rank = config.q_lora_rank
        yield Parameter(f"{prefix}.q_a_proj.weight", (rank, hidden), precision=stored)
        yield Parameter(f"{prefix}.q_a_layernorm.weight", (rank,))
        yield Parameter(f"{prefix}.q_b_proj.weight", (queries, rank), Placement.HEAD_ROWS, stored)
    yield Parameter(f"{prefix}.kv_a_proj_with_mqa.weight", (config.cache_width, hidden), precision=stored)
    yield Parameter(f"{prefix}.kv_a_layernorm.weight", (latent,))
    # W_UK and W_UV are needed per head and transposed: one scale for each would cost accuracy, so they leave FP8.
    expanded = config.num_heads * (config.qk_nope_head_dim + config.v_head_dim)
    yield Parameter(f"{prefix}.kv_b_proj.weight", (expanded, latent), Placement.HEAD_ROWS, Precision.COMPUTE)
    values = config.num_heads * config.v_head_dim
    yield Parameter(f"{prefix}.o_proj.weight", (hidden, values), Placement.HEAD_COLUMNS, stored)


def _swiglu(hidden: int, width: int, prefix: str, expert: int | None = None) -> Iterator[Parameter]:
    placement = Placement.REPLICATED if expert is None else Placement.EXPERT
    for name, shape in {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}.items():
        yield Parameter(f"{prefix}.{name}_proj.weight", shape, placement, Precision.AS_STORED, expert)


def _moe(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    experts, hidden, width = config.router.experts, config.hidden_size, config.moe_intermediate_size
    yield Parameter(f"{prefix}.gate.weight", (experts, hidden), precision=Precision.FLOAT32)
    if config.router.has_bias:
        yield Parameter(f"{prefix}.gate.e_score_correction_bias", (experts,), precision=Precision.FLOAT32)
    for expert in range(experts):
        yield from _swiglu(hidden, width, f"{prefix}.experts.{expert}", expert)
    if config.num_shared_experts:
        yield from _swiglu(hidden, width * config.num_shared_experts, f"{prefix}.shared_experts")


def _mtp(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    hidden = config.hidden_size
    yield Parameter(f"{prefix}.enorm.weight", (hidden,))
    yield Parameter(f"{prefix}.hnorm.weight", (hidden,))
    yield Parameter(f"{prefix}.eh_proj.weight", (hidden, 2 * hidden))
    yield Parameter(f"{prefix}.shared_head.norm.weight", (hidden,))
