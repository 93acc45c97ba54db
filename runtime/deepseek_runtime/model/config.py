"""What `config.json` says about the maths, read raw: old and new field names, defaults of the hub's own code.

Every field that changes the maths is followed, or refused by name where its value is not what is computed here; so is
one on which the public implementations disagree. All others (dropout, auxiliary losses, training, names) are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepseek_runtime.model.fields import ConfigError, Fields, Json, Values
from deepseek_runtime.sizing import ModelShape

__all__ = ["ConfigError", "ModelConfig", "RopeConfig", "RouterConfig", "load_config", "parse_config"]

Family = Literal["v3", "v2"]

ARCHITECTURES: dict[str, Family] = {"DeepseekV3ForCausalLM": "v3", "DeepseekV2ForCausalLM": "v2"}
"""Moonlight and Kimi-K2 call themselves DeepseekV3ForCausalLM."""
MODEL_TYPES: dict[str, Family] = {"deepseek_v3": "v3", "kimi_k2": "v3", "deepseek_v2": "v2"}


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
    power_of_two_scales: bool
    """Whether FP8 scales are powers of two (V3.1): those of weights are so stored, those of activations rounded up."""

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

    @property
    def shape(self) -> ModelShape:
        """What the planner counts."""
        return ModelShape(
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            layers=self.num_layers,
            dense_layers=self.num_dense_layers,
            mtp_layers=self.num_mtp_layers,
            heads=self.num_heads,
            q_lora_rank=self.q_lora_rank,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            v_head_dim=self.v_head_dim,
            intermediate_size=self.intermediate_size,
            moe_intermediate_size=self.moe_intermediate_size,
            experts=self.router.experts,
            shared_experts=self.num_shared_experts,
            quantised=self.fp8_block is not None,
            max_position=self.max_position,
        )

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


def parse_config(raw: object) -> ModelConfig:
    """The typed form of a raw `config.json`; ConfigError names what is missing or cannot be followed."""
    given = Fields(raw, "config.json")
    family = _family(given)
    fields = given.with_defaults(_DEFAULTS[family])
    fields.demand(_COMPUTED | _COMPUTED_BY_FAMILY[family])
    config = _model(fields, family)
    _check_shape(config)
    return config


# What the hub's own configuration classes assume where a field is absent. The MTP layer is no part of a model's
# answer, so without a word about it there is none.
_DEFAULTS: dict[Family, Json] = {
    "v3": {
        "q_lora_rank": 1536,
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
    "v2": {
        "q_lora_rank": 1536,
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
}
# The only values computed here of fields that change the maths; None stands for an absent field or null.
_COMPUTED: dict[str, Values] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "moe_layer_freq": (1, None),
    "mlp_layer_types": (None,),
    "layer_types": (None,),
    "num_nextn_predict_layers": (0, 1, None),
    "index_topk": (None,),
    "sliding_window": (None,),
    "rope_interleave": (True, None),
    "partial_rotary_factor": (1, None),
    "original_max_position_embeddings": (None,),  # transformers lets it overrule the one in rope_scaling
}
_COMPUTED_BY_FAMILY: dict[Family, dict[str, Values]] = {
    "v3": {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    # With norm_topk_prob DeepSeek's own code for V2 normalises and leaves routed_scaling_factor out, vLLM does both,
    # transformers scales and ignores the field. No published checkpoint sets it, so none of the three can be checked.
    "v2": {
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (False, None),
    },
}
_COMPUTED_ROPE: dict[str, Values] = {
    "truncate": (True, None),
    "attention_factor": (None,),
    "partial_rotary_factor": (1, None),
}
# Layers that stay unquantised (modules_to_not_convert, ignored_layers) need no field: each tensor's own type tells.
_COMPUTED_FP8: dict[str, Values] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3", None),
    "activation_scheme": ("dynamic", None),
    "scale_fmt": ("ue8m0", None),
}


def _family(fields: Fields) -> Family:
    """By `architectures`; `model_type` counts where that is absent, and must not contradict it."""
    named, kind = fields.get("architectures"), str(fields.get("model_type"))
    if not named:
        if kind not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise ConfigError(f"config.json: without architectures, model_type is {kind}, known are {known}")
        return MODEL_TYPES[kind]
    architecture = str(named[0] if isinstance(named, list) else named)
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"config.json: architectures is {architecture}, known are {', '.join(ARCHITECTURES)}")
    family = ARCHITECTURES[architecture]
    if MODEL_TYPES.get(kind, family) != family:
        raise ConfigError(f"config.json: model_type is {kind}, which contradicts architectures {architecture}")
    return family


def _model(fields: Fields, family: Family) -> ModelConfig:
    num_layers, quantisation = fields.whole("num_hidden_layers"), fields.section("quantization_config")
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        hidden_size=fields.whole("hidden_size"),
        num_layers=num_layers,
        num_dense_layers=min(fields.whole_or_zero("first_k_dense_replace"), num_layers),
        num_mtp_layers=fields.whole_or_zero("num_nextn_predict_layers"),
        num_heads=fields.whole("num_attention_heads"),
        q_lora_rank=fields.whole_or_zero("q_lora_rank") or None,
        kv_lora_rank=fields.whole("kv_lora_rank"),
        qk_nope_head_dim=fields.whole("qk_nope_head_dim"),
        qk_rope_head_dim=fields.whole("qk_rope_head_dim"),
        v_head_dim=fields.whole("v_head_dim"),
        intermediate_size=fields.whole("intermediate_size"),
        moe_intermediate_size=fields.whole("moe_intermediate_size"),
        num_shared_experts=fields.whole_or_zero("n_shared_experts"),
        rms_norm_eps=fields.real("rms_norm_eps", 1e-6),
        max_position=fields.whole("max_position_embeddings"),
        rope=_rope(fields),
        router=_router(fields, family),
        fp8_block=_fp8_block(quantisation),
        power_of_two_scales=quantisation is not None and quantisation.get("scale_fmt") == "ue8m0",
    )


def _rope(fields: Fields) -> RopeConfig:
    """transformers 5 writes everything into `rope_parameters`, all others `rope_theta` and `rope_scaling`."""
    theta = fields.real("rope_theta", 10000.0)
    found = [
        _rope_section(section, section.real("rope_theta", theta))
        for name in ("rope_parameters", "rope_scaling")
        if (section := fields.section(name))
    ]
    if len(set(found)) > 1:
        raise ConfigError("config.json: rope_parameters and rope_scaling disagree; keep the one that is right")
    return found[0] if found else RopeConfig(theta)


def _rope_section(section: Fields, theta: float) -> RopeConfig:
    kind = section.get("rope_type") or section.get("type") or "default"
    if kind not in ("default", "yarn"):
        raise ConfigError(f"{section.of('type')} is {kind}, known are yarn and default")
    section.demand(_COMPUTED_ROPE)
    if kind == "default":
        return RopeConfig(theta)
    mscale, mscale_all_dim = _mscales(section)
    return RopeConfig(
        theta=theta,
        factor=section.real("factor"),
        original_max_position=section.whole("original_max_position_embeddings"),
        beta_fast=section.real("beta_fast", 32.0),
        beta_slow=section.real("beta_slow", 1.0),
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
    )


def _mscales(section: Fields) -> tuple[float, float]:
    """Both, or at most an `mscale` of 1: for all else DeepSeek's own code and transformers compute different tables."""
    mscale, all_dim = section.get("mscale"), section.get("mscale_all_dim")
    if all_dim and mscale:
        return section.real("mscale"), section.real("mscale_all_dim")
    if not all_dim and mscale in (None, 1):
        return 1.0, 0.0
    raise ConfigError(
        f"{section.of('mscale')} is {json.dumps(mscale)} and mscale_all_dim is {json.dumps(all_dim)}; "
        "public implementations disagree on one without the other, give both"
    )


def _router(fields: Fields, family: Family) -> RouterConfig:
    grouped = fields.get("topk_method") != "greedy"
    return RouterConfig(
        scoring="sigmoid" if family == "v3" else "softmax",
        experts=fields.whole("n_routed_experts"),
        chosen=fields.whole("num_experts_per_tok"),
        groups=(fields.whole_or_zero("n_group") or 1) if grouped else 1,
        chosen_groups=(fields.whole_or_zero("topk_group") or 1) if grouped else 1,
        group_score="top2_sum" if family == "v3" else "max",
        has_bias=family == "v3",
        normalise=bool(fields.get("norm_topk_prob")),
        scale=fields.real("routed_scaling_factor"),
    )


def _check_shape(config: ModelConfig) -> None:
    router = config.router
    if config.qk_rope_head_dim % 2:
        raise ConfigError(f"config.json: qk_rope_head_dim is {config.qk_rope_head_dim}, but dims are rotated in pairs")
    if router.experts % router.groups:
        raise ConfigError(f"config.json: n_group {router.groups} does not divide n_routed_experts {router.experts}")
    reachable = router.experts // router.groups * router.chosen_groups
    if router.chosen > reachable or router.chosen_groups > router.groups:
        raise ConfigError(
            f"config.json: num_experts_per_tok {router.chosen} of the {reachable} experts in topk_group "
            f"{router.chosen_groups} of n_group {router.groups} cannot be chosen"
        )


def _fp8_block(section: Fields | None) -> tuple[int, int] | None:
    if section is None:
        return None
    section.demand(_COMPUTED_FP8)
    block = section.get("weight_block_size")
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise ConfigError(
            f"{section.of('weight_block_size')} is {json.dumps(block)}, expected rows and columns such as [128, 128]"
        )
    return block[0], block[1]
