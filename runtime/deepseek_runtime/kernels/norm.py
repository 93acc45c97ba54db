"""Root-mean-square normalisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last dim, computed in float32, returned in x's dtype."""
    return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)
