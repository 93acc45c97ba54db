"""The references of attention and experts against their definitions, written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_runtime.kernels import mla
from deepseek_runtime.kernels.interface import SwiGLU
from deepseek_runtime.kernels.norm import rms_norm
from deepseek_runtime.kernels.reference import TorchKernels

HEADS, NOPE, ROPE, VALUE, LATENT = 3, 6, 4, 5, 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention_by_definition(q_nope: Tensor, q_rope: Tensor, rows: Tensor, w_uk: Tensor, w_uv: Tensor) -> Tensor:
    """Query t of the last T sees the rows up to S - T + t."""
    tokens, context = len(q_nope), len(rows)
    out = torch.zeros(tokens, HEADS, VALUE, dtype=torch.float64)
    for t in range(tokens):
        seen = rows[: context - tokens + t + 1].double()
        for h in range(HEADS):
            keys = torch.cat((seen[:, :LATENT] @ w_uk[h].double().T, seen[:, LATENT:]), dim=1)
            scores = keys @ torch.cat((q_nope[t, h], q_rope[t, h])).double() * 0.3
            out[t, h] = scores.softmax(dim=0) @ (seen[:, :LATENT] @ w_uv[h].double().T)
    return out


@pytest.mark.parametrize("chunk", [1, 4, 1024])
@pytest.mark.parametrize(("tokens", "context"), [(1, 1), (1, 9), (5, 5), (4, 11), (7, 8)])
def test_both_forms_equal_the_definition(
    tokens: int, context: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mla, "KEY_CHUNK", chunk)
    q_nope, q_rope = noise(tokens, HEADS, NOPE), noise(tokens, HEADS, ROPE, seed=1)
    rows, w_uk, w_uv = (
        noise(context, LATENT + ROPE, seed=2),
        noise(HEADS, NOPE, LATENT, seed=3),
        noise(HEADS, VALUE, LATENT, seed=4),
    )
    expected = attention_by_definition(q_nope, q_rope, rows, w_uk, w_uv).float()
    expanded = mla.expanded_attention(torch.cat((q_nope, q_rope), dim=-1), rows, w_uk, w_uv, 0.3)
    torch.testing.assert_close(expanded, expected, atol=1e-5, rtol=0)

    absorbed_q = torch.cat((torch.einsum("thn,hnc->thc", q_nope, w_uk), q_rope), dim=-1)
    visible = torch.arange(context) <= torch.arange(context - tokens, context).unsqueeze(1)
    mix = mla.absorbed_attention(absorbed_q.unsqueeze(0), rows.unsqueeze(0), visible.unsqueeze(0), LATENT, 0.3)
    absorbed = torch.einsum("thc,hvc->thv", mix[0], w_uv)
    torch.testing.assert_close(absorbed, expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=40)
@given(tokens=st.integers(1, 9), first=st.integers(0, 6), held=st.integers(1, 4), seed=st.integers(0, 1000))
def test_a_rank_adds_its_own_experts_only(tokens: int, first: int, held: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(tokens)])
    weights, x = torch.rand(tokens, 3, generator=generator), torch.randn(tokens, 6, generator=generator)
    stack = SwiGLU(noise(held, 5, 6), noise(held, 5, 6, seed=1), noise(held, 6, 5, seed=2))
    expected = torch.zeros(tokens, 6)
    for t in range(tokens):
        for k in range(3):
            expert = int(ids[t, k]) - first
            if 0 <= expert < held:
                gate, up = stack.gate[expert] @ x[t], stack.up[expert] @ x[t]
                expected[t] += weights[t, k] * (stack.down[expert] @ (gate * gate.sigmoid() * up))
    slots = torch.where((ids >= first) & (ids < first + held), ids - first, -1)
    torch.testing.assert_close(TorchKernels().experts(x, slots, weights, stack), expected, atol=1e-4, rtol=1e-4)


def test_squares_that_overflow_float16_are_summed_in_float32() -> None:
    x = torch.full((1, 64), 300.0).half()
    assert rms_norm(x, torch.full((64,), 2.0).half(), 1e-6).tolist() == [[2.0] * 64]
