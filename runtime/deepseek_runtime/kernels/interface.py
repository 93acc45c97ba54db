"""The operations that cost time. A model gets one object with all of them when it is built, as it gets its group.

`reference.TorchKernels` is plain torch and says what each operation means; the others are faster at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from deepseek_runtime.kernels.fp8 import Weight
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed, Expanded


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """Weights of down(silu(gate x) · up x): gate and up [F, D], down [D, F]; or stacks of them [E, …]."""

    gate: Weight
    up: Weight
    down: Weight

    def __getitem__(self, index: int) -> SwiGLU:
        """One expert of a stack."""
        return SwiGLU(self.gate[index], self.up[index], self.down[index])


@dataclass(frozen=True, slots=True)
class Expansion:
    """The two halves of `kv_b_proj` per head, and the softmax scale of scores."""

    w_uk_HNC: Tensor
    w_uv_HVC: Tensor
    scale: float


class Kernels(Protocol):
    """Every tensor is of the model's compute type unless said. Results are new tensors; inputs stay as they are.

    A batch-invariant implementation promises more: the bits of a token's results depend on that token and on its own
    sequence only, not on the other sequences of the step, nor on how many tokens run in it.
    """

    @property
    def decodes_fp8(self) -> bool:
        """Whether FP8 blocks cost no more time than dense weights, so that keeping them small is free."""
        ...

    @property
    def absorb_up_to(self) -> int:
        """The most new tokens of a sequence for which attention takes the absorbed form."""
        ...

    def linear(self, x_TI: Tensor, weight_OI: Weight) -> Tensor:
        """x · weightᵀ [T, O]."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / √(mean(x²) + eps) · weight over the last dim, computed in float32."""
        ...

    def add_rms_norm(self, residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The new residual, residual + x, and its normalised form."""
        ...

    def route(
        self, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None, config: RouterConfig
    ) -> tuple[Tensor, Tensor]:
        """Ids [T, K] int64 and weights [T, K] float32 of the chosen experts; equal scores go to the lowest id."""
        ...

    def swiglu(self, x_TD: Tensor, weights: SwiGLU) -> Tensor:
        """A dense feed-forward layer [T, D]."""
        ...

    def experts(self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, experts: SwiGLU) -> Tensor:
        """Weighted sum [T, D] float32 over the chosen experts of the stack; slot -1 is one that is not in it."""
        ...

    def rotate(self, x_THR: Tensor, rotations_T: Tensor) -> Tensor:
        """Rotate the interleaved pairs of every head by the token's rotations, complex64 [T, R / 2]."""
        ...

    def write_latents(self, joined_TW: Tensor, norm_C: Tensor, eps: float, where: Latents) -> None:
        """Write tokens' [latent C | key R] to the cache, the latent normalised and the key rotated."""
        ...

    def absorbed_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Absorbed, expansion: Expansion
    ) -> Tensor:
        """Output [B · Q, H, V] of the part's tokens, each over the first `part.lengths_BQ` rows of its sequence."""
        ...

    def expanded_attention(
        self, q_nope_THN: Tensor, q_rope_THR: Tensor, cache_SW: Tensor, part: Expanded, expansion: Expansion
    ) -> Tensor:
        """Output [stop - start, H, V] of one sequence's tokens, causal relative to what was cached before."""
        ...


@dataclass(frozen=True, slots=True)
class Latents:
    """Where a step's latents go: rows `slots_T` of the cache, keys rotated by `rotations_T`."""

    cache_SW: Tensor
    slots_T: Tensor
    rotations_T: Tensor
