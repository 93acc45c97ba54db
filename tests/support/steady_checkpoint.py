"""Checkpoints whose routing no rounding can flip, so that lower precision may be judged token by token.

A random mixture of experts is chaotic: a score that is rounded picks another expert, and everything behind it differs.
Here the first E channels of the residual stream carry the choice of each token and no layer writes to them: the router
reads nothing else, and its scores lie far apart.
"""

import torch
from torch import Tensor

from tiny_checkpoint import Config, Tensors, random_tensors

SPREAD = 4.0
"""Router logits of a token run from +SPREAD/2 down to -SPREAD/2 in equal steps."""


def steady_tensors(config: Config, seed: int = 0) -> Tensors:
    """Random tensors but for what decides the routing; experts of a group have neighbouring scores."""
    tensors, experts = random_tensors(config, seed), config["n_routed_experts"]
    generator = torch.Generator().manual_seed(seed)
    groups = config["n_group"] if config["topk_method"] != "greedy" else 1
    levels = torch.stack([_levels(experts, groups, generator) for _ in range(config["vocab_size"])])
    tensors["model.embed_tokens.weight"][:, :experts] = levels.bfloat16()
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[:experts] = 0
        elif name.endswith("mlp.gate.weight"):
            norm = tensors[name.replace("mlp.gate", "post_attention_layernorm")][:experts].float()
            tensors[name] = torch.eye(*tensor.shape).mul(1 / norm.unsqueeze(1)).bfloat16()
        elif name.endswith("e_score_correction_bias"):
            tensor.mul_(0.01)
    return tensors


def _levels(experts: int, groups: int, generator: torch.Generator) -> Tensor:
    """A token's score of each expert: groups in a random order, experts of each group too."""
    steps = torch.linspace(SPREAD / 2, -SPREAD / 2, experts).view(groups, -1)
    order = torch.stack([torch.randperm(experts // groups, generator=generator) for _ in range(groups)])
    return steps.gather(1, order)[torch.randperm(groups, generator=generator)].flatten()
