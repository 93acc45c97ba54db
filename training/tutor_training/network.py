"""The DeepSeek-V3 architecture for training: MLA, sigmoid routing with a correction bias, one MTP layer.

Written for whole padded sequences and gradients, and on purpose independent of the runtime: the runtime must reproduce
what was trained here from `config.json` and the tensors alone, so a shared mistake cannot hide.
Parameter names are the hub's. Legend: B batch, L length, T = B·L tokens, D hidden, H heads, E experts.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 768,
    "hidden_size": 256,
    "intermediate_size": 768,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "initializer_range": 0.02,
    "use_cache": True,
    "ep_size": 1,
    "pretraining_tp": 1,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}

Weight = Callable[[Tensor], Tensor]
"""What a linear layer applies to its weight before use: the identity, or rounding to FP8 blocks (see `train`)."""


class Linear(nn.Module):
    """A bias-free linear layer in its input's precision, whose weight passes through the network's `Rounding`."""

    def __init__(self, inputs: int, outputs: int, rounding: "Rounding") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * CONFIG["initializer_range"])
        self._rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._rounding.apply(self.weight).to(x.dtype))


class Rounding:
    """The network's precision: FP8 rounding of its quantised layers (off at first), and the type it computes in."""

    def __init__(self) -> None:
        self.function: Weight | None = None
        self.dtype = torch.float32

    def apply(self, weight: Tensor) -> Tensor:
        if self.function is None:
            return weight
        return weight + (self.function(weight) - weight).detach()  # straight-through estimator


class RMSNorm(nn.Module):
    """Normalise; the residual stream comes in as float32 and leaves in the precision that the layers compute in."""

    def __init__(self, size: int, rounding: Rounding) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), CONFIG["rms_norm_eps"])
        return normed.to(self._rounding.dtype)


def yarn_inverse_frequencies(config: dict[str, Any]) -> Tensor:
    """YaRN frequencies (arXiv 2309.00071): interpolate slow dimensions, keep fast ones. Shape [rope_dim / 2]."""
    dim, base, scaling = config["qk_rope_head_dim"], config["rope_theta"], config["rope_scaling"]
    plain: Tensor = base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)

    def dimension_of(rotations: float) -> float:
        wavelength = scaling["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return float(dim * math.log(wavelength) / (2 * math.log(base)))

    low = max(math.floor(dimension_of(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension_of(scaling["beta_slow"])), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    mixed: Tensor = plain * (1 - ramp) + plain / float(scaling["factor"]) * ramp
    return mixed


def softmax_scale(config: dict[str, Any]) -> float:
    """(nope + rope)^-½ times YaRN's mscale squared."""
    scaling = config["rope_scaling"]
    mscale = 0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1
    return float((config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5 * mscale**2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the interleaved pairs (2i, 2i+1) of x [B, L, H, R] by the angles of its position, in float32."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head latent attention in its expanded form."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        c = CONFIG
        self.heads, self.nope, self.rope, self.value = (
            c["num_attention_heads"],
            c["qk_nope_head_dim"],
            c["qk_rope_head_dim"],
            c["v_head_dim"],
        )
        self.latent = c["kv_lora_rank"]
        self.q_a_proj = Linear(c["hidden_size"], c["q_lora_rank"], rounding)
        self.q_a_layernorm = RMSNorm(c["q_lora_rank"], rounding)
        self.q_b_proj = Linear(c["q_lora_rank"], self.heads * (self.nope + self.rope), rounding)
        self.kv_a_proj_with_mqa = Linear(c["hidden_size"], self.latent + self.rope, rounding)
        self.kv_a_layernorm = RMSNorm(self.latent, rounding)
        self.kv_b_proj = Linear(self.latent, self.heads * (self.nope + self.value), rounding)
        self.o_proj = Linear(self.heads * self.value, c["hidden_size"], rounding)
        self.scale = softmax_scale(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, length, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(b, length, self.heads, -1)
        q_nope, q_rope = q.split([self.nope, self.rope], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.latent, self.rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, length, self.heads, -1)
        k_nope, v = kv.split([self.nope, self.value], dim=-1)
        k_rope = rotate(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, self.heads, -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), dim=-1).transpose(1, 2)
        k = torch.cat((k_nope, k_rope), dim=-1).transpose(1, 2)
        scores = (q @ k.transpose(2, 3)).float() * self.scale  # at these lengths quicker than the fused CPU kernel
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        out = scores.masked_fill(causal, -math.inf).softmax(dim=-1).to(v.dtype) @ v.transpose(1, 2)
        joined: Tensor = self.o_proj(out.transpose(1, 2).reshape(b, length, -1))
        return joined


class MLP(nn.Module):
    def __init__(self, width: int, rounding: Rounding) -> None:
        super().__init__()
        self.gate_proj = Linear(CONFIG["hidden_size"], width, rounding)
        self.up_proj = Linear(CONFIG["hidden_size"], width, rounding)
        self.down_proj = Linear(width, CONFIG["hidden_size"], rounding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Sigmoid scores; the correction bias moves the choice only, and is itself moved by `balance`, not by gradients."""

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CONFIG["n_routed_experts"], CONFIG["hidden_size"]) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(CONFIG["n_routed_experts"]))
        self.register_buffer("load", torch.zeros(CONFIG["n_routed_experts"]), persistent=False)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts [T, k] and their weights [T, k], in float32."""
        c = CONFIG
        scores = F.linear(x_TD.float(), self.weight).sigmoid()
        choice = (scores + self.e_score_correction_bias).detach()
        groups = choice.view(-1, c["n_group"], c["n_routed_experts"] // c["n_group"])
        kept = groups.topk(2, dim=-1).values.sum(-1).topk(c["topk_group"], dim=-1).indices
        mask = torch.ones(groups.shape[:2], dtype=torch.bool).scatter(1, kept, False)
        choice = groups.masked_fill(mask.unsqueeze(-1), -math.inf).flatten(1)
        ids = choice.topk(c["num_experts_per_tok"], dim=-1).indices
        weights = scores.gather(1, ids)
        self.load += torch.bincount(ids.flatten(), minlength=c["n_routed_experts"])
        return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]

    @torch.no_grad()
    def balance(self, speed: float) -> None:
        """Auxiliary-loss-free balancing (arXiv 2408.15664): nudge the bias of busy experts down, of idle ones up."""
        self.e_score_correction_bias += speed * (self.load.mean() - self.load).sign()
        self.load.zero_()


class MoE(nn.Module):
    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        width = CONFIG["moe_intermediate_size"]
        self.gate = Router()
        self.experts = nn.ModuleList(MLP(width, rounding) for _ in range(CONFIG["n_routed_experts"]))
        self.shared_experts = MLP(width * CONFIG["n_shared_experts"], rounding)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        ids, weights = self.gate(flat)
        order = ids.flatten().argsort(stable=True)
        token = order // ids.shape[1]
        counts = torch.bincount(ids.flatten(), minlength=len(self.experts)).tolist()
        parts = torch.split(flat[token], counts)
        out = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        out = out * weights.flatten()[order].unsqueeze(-1).to(out.dtype)
        routed = torch.zeros_like(flat, dtype=out.dtype).index_add(0, token, out)
        shared: Tensor = self.shared_experts(x)
        return shared + routed.view_as(x)


class Layer(nn.Module):
    def __init__(self, rounding: Rounding, *, dense: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(CONFIG["hidden_size"], rounding)
        self.self_attn = Attention(rounding)
        self.post_attention_layernorm = RMSNorm(CONFIG["hidden_size"], rounding)
        self.mlp: nn.Module = MLP(CONFIG["intermediate_size"], rounding) if dense else MoE(rounding)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attended: Tensor = x + self.self_attn(self.input_layernorm(x), cos, sin)
        added: Tensor = self.mlp(self.post_attention_layernorm(attended))
        return attended + added


class MTPLayer(Layer):
    """Predicts the token after next from [embedding of the next token ; hidden state], in this order."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__(rounding, dense=False)
        size = CONFIG["hidden_size"]
        self.enorm, self.hnorm = RMSNorm(size, rounding), RMSNorm(size, rounding)
        self.eh_proj = Linear(2 * size, size, Rounding())  # never quantised
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(size, rounding)})

    def draft(self, next_embedding: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What the head turns into logits for the token after next; both inputs [B, L, D]."""
        joined = torch.cat((self.enorm(next_embedding), self.hnorm(hidden)), dim=-1)
        drafted: Tensor = self.shared_head["norm"](self(self.eh_proj(joined), cos, sin))
        return drafted


class Stack(nn.Module):
    """What the hub's names call `model`: embedding, layers with the MTP layer last, final norm."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        c = CONFIG
        # The order of construction is the order of random numbers: another one gives another model from the same seed.
        main = [Layer(rounding, dense=i < c["first_k_dense_replace"]) for i in range(c["num_hidden_layers"])]
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=c["initializer_range"])
        self.layers = nn.ModuleList([*main, MTPLayer(rounding)])
        self.norm = RMSNorm(c["hidden_size"], rounding)


class Network(nn.Module):
    """The whole model, its parameters under the hub's names."""

    cos: Tensor
    sin: Tensor

    def __init__(self, longest: int) -> None:
        super().__init__()
        c = CONFIG
        self.rounding = Rounding()
        self.model = Stack(self.rounding)
        self.lm_head = Linear(c["hidden_size"], c["vocab_size"], Rounding())
        angles = torch.outer(torch.arange(longest, dtype=torch.float32), yarn_inverse_frequencies(c))
        self.register_buffer("cos", angles.cos()[None, :, None], persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, None], persistent=False)

    def forward(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for the next token [B, L, V], and the MTP layer's for the one after it [B, L - 1, V]."""
        length = ids_BL.shape[1]
        cos, sin = self.cos[:, :length], self.sin[:, :length]
        embedded = self.model.embed_tokens(ids_BL)
        *layers, mtp = self.model.layers
        assert isinstance(mtp, MTPLayer)
        x = embedded
        for layer in layers:
            x = layer(x, cos, sin)
        hidden = self.model.norm(x)
        drafted = mtp.draft(embedded[:, 1:], hidden[:, :-1], cos[:, :-1], sin[:, :-1])
        return self.lm_head(hidden), self.lm_head(drafted)

    def routers(self) -> list[Router]:
        return [module for module in self.modules() if isinstance(module, Router)]
