"""What the kernels' operations mean, written out in float64, and how far from it a result may be."""

from collections.abc import Callable

import torch
from torch import Tensor

from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.kernels.interface import Expansion, SwiGLU

Noise = Callable[..., Tensor]
"""Normal random numbers of a shape."""
Layer = Callable[[Tensor, SwiGLU], Tensor]


def real(weight: Weight) -> Tensor:
    """A weight in float64."""
    return weight.dequantise(torch.float64) if isinstance(weight, Fp8Weight) else weight.double()


def swiglu(x_TD: Tensor, weights: SwiGLU) -> Tensor:
    """One layer [T, D]."""
    gated = x_TD.double() @ real(weights.gate).T
    return (gated * gated.sigmoid() * (x_TD.double() @ real(weights.up).T)) @ real(weights.down).T


def swiglu_size(x_TD: Tensor, weights: SwiGLU) -> Tensor:
    """What one layer would be if nothing cancelled: rounding errors are relative to this."""
    x, gate, up, down = (
        tensor.abs() for tensor in (x_TD.double(), *map(real, (weights.gate, weights.up, weights.down)))
    )
    return ((x @ gate.T) * (x @ up.T)) @ down.T


def experts(x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, stack: SwiGLU, layer: Layer = swiglu) -> Tensor:
    """Weighted sum [T, D] over the chosen layers, token by token."""
    out = torch.zeros(x_TD.shape, dtype=torch.float64)
    for token, (slots, weights) in enumerate(zip(slots_TK.tolist(), weights_TK.tolist(), strict=True)):
        for slot, weight in zip(slots, weights, strict=True):
            if slot >= 0:
                out[token] += weight * layer(x_TD[token : token + 1], stack[slot])[0]
    return out


def attention(q_nope_HN: Tensor, q_rope_HR: Tensor, rows_SW: Tensor, expansion: Expansion) -> Tensor:
    """One token's output [H, V] over the rows that it sees."""
    w_uk, w_uv = expansion.w_uk_HNC.double(), expansion.w_uv_HVC.double()
    latent, shared = rows_SW[:, : w_uk.shape[2]].double(), rows_SW[:, w_uk.shape[2] :].double()
    keys = torch.einsum("sc,hnc->hsn", latent, w_uk)
    scores = torch.einsum("hn,hsn->hs", q_nope_HN.double(), keys) + q_rope_HR.double() @ shared.T
    values = torch.einsum("sc,hvc->hsv", latent, w_uv)
    return torch.einsum("hs,hsv->hv", (scores * expansion.scale).softmax(dim=-1), values)


def assert_close(actual: Tensor, expected: Tensor, rounding: float, size: Tensor | None = None) -> None:
    """Everywhere within `rounding` of the largest value, or of the `size` of what was summed, which may cancel."""
    assert actual.shape == expected.shape
    worst = (actual.double() - expected.double()).abs().max() / (
        expected if size is None else size
    ).double().abs().max()
    assert worst <= rounding, f"off by {worst:.1e} of the largest value"
