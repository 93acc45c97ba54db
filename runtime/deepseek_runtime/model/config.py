"""What `config.json` says about the maths, read raw: old and new field names, defaults of the hub's own code.

Every field that changes the maths is followed, or refused by name where its value is not what is computed here; so is
one on which the public implementations disagree, and one that is not known at all (`config_fields` has the lists).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepseek_runtime.model import config_fields as known
from deepseek_runtime.model.config_fields import Family
from deepseek_runtime.model.fields import ConfigError, Fields
from deepseek_runtime.model.script_config import is_script_config, translate
from deepseek_runtime.sizing import ModelShape

__all__ = ["ConfigError", "ModelConfig", "RopeConfig", "RouterConfig", "load_config", "parse_config"]

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


def load_config(folder: Path, instead: Path | None = None) -> ModelConfig:
    """Read `config.json` of a checkpoint folder, or the file that is given instead of it."""
    file = instead or folder / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "" if instead else "; is this a checkpoint folder in the hub's layout?"
        raise ConfigError(f"{file}: {error.strerror}{hint}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}") from error
    try:
        return parse_config(raw)
    except ConfigError as error:
        if instead is None:
            raise
        raise ConfigError(f"{instead}, in place of {error}") from error


def parse_config(raw: object) -> ModelConfig:
    """The typed form of a raw `config.json`, in the hub's names or in those of DeepSeek's own script.

    ConfigError names what is missing or cannot be followed.
    """
    given = Fields(raw, "config.json")
    if is_script_config(given):
        given = translate(given)
    family = _family(given)
    fields = given.with_defaults(known.DEFAULTS[family])
    fields.demand(known.COMPUTED | known.COMPUTED_BY_FAMILY[family])
    fields.allow(known.FOLLOWED | known.COMPUTED.keys() | known.HARMLESS)
    config = _model(fields, family)
    _check_shape(config)
    return config


def _family(fields: Fields) -> Family:
    """By `architectures`; `model_type` counts where that is absent, and must not contradict it."""
    named, kind = fields.get("architectures"), str(fields.get("model_type"))
    if not named and kind not in MODEL_TYPES:
        listed = ", ".join(MODEL_TYPES)
        raise ConfigError(f"config.json: without architectures, model_type is {kind}, known are {listed}")
    architecture = _only(named) if named else None
    family = ARCHITECTURES[architecture] if architecture else MODEL_TYPES[kind]
    if fields.get("model_type") is not None and MODEL_TYPES.get(kind) != family:
        raise ConfigError(f"config.json: model_type is {kind}, which contradicts architectures {architecture}")
    return family


def _only(named: object) -> str:
    """The one architecture that a file names."""
    names = named if isinstance(named, list) else [named]
    if len(names) != 1:
        raise ConfigError(f"config.json: architectures is {json.dumps(named)}, expected one name")
    architecture = str(names[0])
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"config.json: architectures is {architecture}, known are {', '.join(ARCHITECTURES)}")
    return architecture


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
    sections = [section for name in ("rope_parameters", "rope_scaling") if (section := fields.section(name))]
    found = [_rope_section(section, _theta(section, fields)) for section in sections]
    if len(set(found)) > 1:
        raise ConfigError("config.json: rope_parameters and rope_scaling disagree; keep the one that is right")
    return found[0] if found else RopeConfig(_theta(fields, fields))


def _theta(section: Fields, outer: Fields) -> float:
    """The base of the rotation, by its section or else by the field outside, which may not differ."""
    bases = [fields.real("rope_theta") for fields in (section, outer) if fields.get("rope_theta") is not None]
    if len(set(bases)) > 1:
        raise ConfigError(f"{section.of('rope_theta')} is {bases[0]:g}, but {outer.of('rope_theta')} is {bases[1]:g}")
    theta = bases[0] if bases else 10000.0
    if theta <= 1:
        raise ConfigError(f"{section.of('rope_theta')} is {theta:g}, expected more than 1, such as 10000")
    return theta


def _rope_section(section: Fields, theta: float) -> RopeConfig:
    kinds = {str(name) for field in ("rope_type", "type") if (name := section.get(field))}
    kind = next(iter(kinds), "default")
    if len(kinds) > 1 or kind not in ("default", "yarn"):
        raise ConfigError(f"{section.of('type')} is {' and '.join(sorted(kinds))}, known are yarn and default")
    section.demand(known.COMPUTED_ROPE)
    section.allow(known.COMPUTED_ROPE.keys() | (known.FOLLOWED_YARN if kind == "yarn" else known.FOLLOWED_ROPE))
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
        normalise=family == "v3" and fields.flag("norm_topk_prob"),
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
    section.demand(known.COMPUTED_FP8)
    section.allow(known.COMPUTED_FP8.keys() | known.KNOWN_FP8)
    block = section.get("weight_block_size")
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise ConfigError(
            f"{section.of('weight_block_size')} is {json.dumps(block)}, expected rows and columns such as [128, 128]"
        )
    return block[0], block[1]
