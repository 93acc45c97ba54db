"""What `config.json` says about the maths, read raw: old and new field names, defaults of the hub's own code.

A field that would change the maths in a way that is not built is refused by name; all others are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Json = Mapping[str, Any]

ARCHITECTURES = {"DeepseekV3ForCausalLM": "deepseek_v3", "DeepseekV2ForCausalLM": "deepseek_v2"}
TOPK_METHODS = {"noaux_tc", "greedy", "group_limited_greedy"}


class ConfigError(ValueError):
    """A `config.json` that this runtime cannot follow; the message names the field and says what it may be."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding; `factor` 1 is the plain form, otherwise YaRN (arXiv 2309.00071)."""

    theta: float
    factor: float = 1.0
    original_max_position: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """How tokens choose experts. The bias moves the choice, never the weights."""

    scoring: Literal["sigmoid", "softmax"]
    experts: int
    chosen: int
    groups: int
    chosen_groups: int
    group_score: Literal["top2_sum", "max"]
    has_bias: bool
    normalise: bool
    scale: float


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape and the maths of a model of the DeepSeek-V2/V3 family."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_dense_layers: int
    num_mtp_layers: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    num_shared_experts: int
    rms_norm_eps: float
    max_position: int
    rope: RopeConfig
    router: RouterConfig
    fp8_block: tuple[int, int] | None
    """Rows and columns that share an FP8 scale; None for a checkpoint without FP8."""

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Values cached per token and layer: the latent, then the rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_cache_layers(self) -> int:
        return self.num_layers + self.num_mtp_layers

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has a plain MLP rather than experts; the MTP layer has experts."""
        return layer < self.num_dense_layers


def load_config(path: Path) -> ModelConfig:
    """Read `config.json` of a checkpoint folder."""
    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; is this a checkpoint folder in the hub's layout?") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error
    return parse_config(raw)


def parse_config(raw: Json) -> ModelConfig:
    """The typed form of a raw `config.json`; ConfigError names what is missing or cannot be followed."""
    _refuse_unknown_maths(raw)
    try:
        config = _model(raw)
    except KeyError as error:
        raise ConfigError(f"config.json: {error.args[0]} is missing") from None
    _check_routing(config.router)
    return config


def _model(raw: Json) -> ModelConfig:
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_dense_layers=min(raw.get("first_k_dense_replace", 0), raw["num_hidden_layers"]),
        num_mtp_layers=raw.get("num_nextn_predict_layers") or 0,
        num_heads=raw["num_attention_heads"],
        q_lora_rank=raw.get("q_lora_rank") or None,
        kv_lora_rank=raw["kv_lora_rank"],
        qk_nope_head_dim=raw["qk_nope_head_dim"],
        qk_rope_head_dim=raw["qk_rope_head_dim"],
        v_head_dim=raw["v_head_dim"],
        intermediate_size=raw["intermediate_size"],
        moe_intermediate_size=raw["moe_intermediate_size"],
        num_shared_experts=raw.get("n_shared_experts") or 0,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_position=raw["max_position_embeddings"],
        rope=_rope(raw),
        router=_router(raw),
        fp8_block=_fp8_block(raw.get("quantization_config")),
    )


def _refuse_unknown_maths(raw: Json) -> None:
    architecture = (raw.get("architectures") or ["none"])[0]
    known = architecture in ARCHITECTURES or (
        architecture == "none" and raw.get("model_type") in ARCHITECTURES.values()
    )
    if not known:
        raise ConfigError(f"config.json: architectures is {architecture}, known are {', '.join(ARCHITECTURES)}")
    fixed: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "tie_word_embeddings": (False, None),
        "moe_layer_freq": (1,),
        "rope_interleave": (True,),
        "num_nextn_predict_layers": (0, 1, None),
        "index_topk": (None,),
        "sliding_window": (None,),
    }
    for field, allowed in fixed.items():
        if field in raw and raw[field] not in allowed:
            shown = " or ".join(json.dumps(value) for value in allowed if value is not None) or "absent"
            raise ConfigError(f"config.json: {field} is {json.dumps(raw[field])}, this runtime computes only {shown}")


def _rope(raw: Json) -> RopeConfig:
    new = raw.get("rope_parameters") or {}
    fields = new or raw.get("rope_scaling") or {}
    name = "rope_parameters" if new else "rope_scaling"
    theta = float(new.get("rope_theta") or raw.get("rope_theta", 10000.0))
    kind = fields.get("rope_type") or fields.get("type") or "default"
    if kind == "default":
        return RopeConfig(theta)
    if kind != "yarn":
        raise ConfigError(f"config.json: {name}.type is {kind}, known are yarn and default")
    for field, allowed in {"truncate": (True,), "attention_factor": (None,)}.items():
        if field in fields and fields[field] not in allowed:
            raise ConfigError(f"config.json: {name}.{field} is {json.dumps(fields[field])}, which is not built")
    # Some checkpoints write these as integers.
    return RopeConfig(
        theta=theta,
        factor=float(fields["factor"]),
        original_max_position=int(fields["original_max_position_embeddings"]),
        beta_fast=float(fields.get("beta_fast") or 32),
        beta_slow=float(fields.get("beta_slow") or 1),
        mscale=float(fields.get("mscale") or 1),
        mscale_all_dim=float(fields.get("mscale_all_dim") or 0),
    )


def _router(raw: Json) -> RouterConfig:
    is_v3 = raw.get("model_type") == "deepseek_v3" or "DeepseekV3ForCausalLM" in (raw.get("architectures") or ())
    scoring = raw.get("scoring_func", "sigmoid" if is_v3 else "softmax")
    method = raw.get("topk_method", "noaux_tc" if is_v3 else "greedy")
    if scoring not in ("sigmoid", "softmax"):
        raise ConfigError(f"config.json: scoring_func is {scoring}, known are sigmoid and softmax")
    if method not in TOPK_METHODS:
        raise ConfigError(f"config.json: topk_method is {method}, known are {', '.join(sorted(TOPK_METHODS))}")
    grouped = method != "greedy"
    return RouterConfig(
        scoring=scoring,
        experts=raw["n_routed_experts"],
        chosen=raw["num_experts_per_tok"],
        groups=(raw.get("n_group") or 1) if grouped else 1,
        chosen_groups=(raw.get("topk_group") or 1) if grouped else 1,
        group_score="top2_sum" if method == "noaux_tc" else "max",
        has_bias=method == "noaux_tc",
        normalise=raw.get("norm_topk_prob", is_v3),
        scale=float(raw.get("routed_scaling_factor", 1.0)),
    )


def _check_routing(router: RouterConfig) -> None:
    if router.experts % router.groups:
        raise ConfigError(f"config.json: n_group {router.groups} does not divide n_routed_experts {router.experts}")
    reachable = router.experts // router.groups * router.chosen_groups
    if not 0 < router.chosen <= reachable or router.chosen_groups > router.groups:
        raise ConfigError(
            f"config.json: num_experts_per_tok {router.chosen} of the {reachable} experts in topk_group "
            f"{router.chosen_groups} of n_group {router.groups} cannot be chosen"
        )


def _fp8_block(quantisation: Json | None) -> tuple[int, int] | None:
    if not quantisation:
        return None
    method, fmt = quantisation.get("quant_method"), quantisation.get("fmt", "e4m3")
    block = quantisation.get("weight_block_size")
    if method != "fp8" or fmt != "e4m3" or not isinstance(block, list | tuple) or len(block) != 2:
        raise ConfigError(
            f"config.json: quantization_config has quant_method {method}, fmt {fmt}, weight_block_size {block}; "
            "known is fp8, e4m3 with blocks such as [128, 128]"
        )
    return int(block[0]), int(block[1])
