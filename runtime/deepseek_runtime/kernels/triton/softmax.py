"""A softmax-weighted sum over keys that come block by block: a peak, a sum and a mix per row, rescaled on the way."""

from __future__ import annotations

from deepseek_runtime.kernels.triton.language import inline, tl


@inline
def add_keys(
    scores: tl.tensor, values: tl.tensor, peak: tl.tensor, total: tl.tensor, mixed: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """New peak [M], total [M] and mix [M, V] with scores [M, S] of values [S, V]; -inf hides a key from a row."""
    risen = tl.maximum(peak, tl.max(scores, axis=1))
    # A row may have seen no key yet: its peak stays -inf, and -inf - -inf must not become NaN.
    anchor = tl.where(risen == float("-inf"), 0.0, risen)
    weights = tl.exp(scores - anchor[:, None])
    rescale = tl.exp(peak - anchor)
    total = total * rescale + tl.sum(weights, axis=1)
    mixed = mixed * rescale[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return risen, total, mixed
