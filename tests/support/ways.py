"""Every way through a prompt that must end in the same logits: whole, in chunks, behind a cached prefix, in both forms.

A way is a function of a model and the tokens, to logits [T, V] of all of them. Its steps depend on the number of tokens
alone, so that ranks which each follow it with tokens of their own stay in step.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.model import DeepSeekV3Model
from stepping import batch_of, logits_in_chunks

Way = Callable[[DeepSeekV3Model, list[int]], Tensor]
ALWAYS, NEVER = 100_000, 0


def in_chunks(model: DeepSeekV3Model, tokens: list[int], *, size: int) -> Tensor:
    """Chunks of one size, the last one shorter."""
    full, rest = divmod(len(tokens), size)
    return logits_in_chunks(model, tokens, [size] * full + ([rest] if rest else []))


def in_form(model: DeepSeekV3Model, tokens: list[int], *, absorb_up_to: int) -> Tensor:
    """One prefill and a chunk behind it, in the absorbed form always or never."""
    usual, model.absorb_up_to = model.absorb_up_to, absorb_up_to
    try:
        return in_chunks(model, tokens, size=len(tokens) * 2 // 3)
    finally:
        model.absorb_up_to = usual


def behind_a_prefix(model: DeepSeekV3Model, tokens: list[int], *, shared: int, block: int) -> Tensor:
    """The first `shared` tokens were cached for another prompt, which goes on otherwise; their blocks are read."""
    blocks = -(-len(tokens) // block)
    cache = LatentCache.create(model.config, 2 * blocks, block, model.device, model.dtype)
    other = tokens[:shared] + tokens[:shared:-1] + tokens[:1]
    table = list(range(blocks))
    first = model.forward(batch_of([(other, 0, table)]), cache)[:shared]
    own = table[: shared // block] + list(range(blocks, 2 * blocks - shared // block))
    rest = model.forward(batch_of([(tokens[shared:], shared, own)]), cache)
    again = model.forward(batch_of([(other[shared:], shared, table)]), cache)
    assert len(again) == len(rest), "both prompts go on behind what they share"
    return model.logits(torch.cat((first, rest)))


WAYS: dict[str, Way] = {
    "one prefill": lambda model, tokens: in_chunks(model, tokens, size=len(tokens)),
    "chunks of 64": partial(in_chunks, size=64),
    "chunks of 7": partial(in_chunks, size=7),
    "single tokens": partial(in_chunks, size=1),
    "128 tokens cached": partial(behind_a_prefix, shared=128, block=16),
    "two tokens shared": partial(behind_a_prefix, shared=2, block=2),
    "absorbed": partial(in_form, absorb_up_to=ALWAYS),
    "expanded": partial(in_form, absorb_up_to=NEVER),
}
