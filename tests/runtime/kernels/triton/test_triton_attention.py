"""Paged absorbed attention and expanded attention in chunks, against float64."""

import pytest
import torch

import kernel_definitions as definition
from deepseek_runtime.kernels.interface import Expansion
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.kernels.triton import mla_decode, mla_prefill
from deepseek_runtime.kernels.triton.hardware import Hardware
from deepseek_runtime.kernels.triton.kernels import TritonKernels
from deepseek_runtime.model.step import Absorbed, Expanded

PLAIN = Hardware(None, 1, 1)
HEADS, NOPE, ROPE, VALUE, LATENT, PAGE = 5, 6, 4, 7, 24, 8


@pytest.fixture
def expansion(noise) -> Expansion:
    return Expansion(noise(HEADS, NOPE, LATENT), noise(HEADS, VALUE, LATENT), 0.2)


def paged(lengths: list[list[int]], device: torch.device, blocks: int = 64) -> Absorbed:
    """Sequences whose blocks lie anywhere in the cache."""
    batch, queries, context = len(lengths), len(lengths[0]), max(map(max, lengths))
    pages = -(-context // PAGE)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(3))
    return Absorbed(
        tokens_BQ=torch.arange(batch * queries, device=device).flip(0).view(batch, queries),
        lengths_BQ=torch.tensor(lengths, device=device),
        blocks_BP=order[: batch * pages].view(batch, pages).to(device),
        block_size=PAGE,
        context=context,
        covers_step=False,
    )


def absorbed_by_definition(q_nope, q_rope, cache, part: Absorbed, expansion: Expansion) -> torch.Tensor:
    q_nope, q_rope, cache = q_nope.double(), q_rope.double(), cache.double()
    w_uk, w_uv = expansion.w_uk_HNC.double(), expansion.w_uv_HVC.double()
    out = []
    for b, tokens in enumerate(part.tokens_BQ.tolist()):
        for q, t in enumerate(tokens):
            rows = cache[part.slots_BS[b, : part.lengths_BQ[b, q]]]
            latent, turned = rows[:, :LATENT], rows[:, LATENT:]
            keys = torch.einsum("hnc,sc->hsn", w_uk, latent)
            scores = torch.einsum("hn,hsn->hs", q_nope[t], keys) + q_rope[t] @ turned.T
            weights = (scores * expansion.scale).softmax(-1)
            out.append(torch.einsum("hs,sc,hvc->hv", weights, latent, w_uv))
    return torch.stack(out)


@pytest.mark.parametrize("lengths", [[[1]], [[40], [3], [17]], [[30, 31, 32], [1, 2, 3]], [[70, 71, 71]]])
@pytest.mark.parametrize("splits", [1, 4])
def test_each_query_sees_its_own_length(noise, device, expansion, lengths, splits) -> None:
    part = paged(lengths, device)
    tokens = part.tokens_BQ.numel()
    q_nope, q_rope = noise(tokens, HEADS, NOPE), noise(tokens, HEADS, ROPE)
    cache = noise(64 * PAGE, LATENT + ROPE)
    q = torch.einsum("thn,hnc->thc", q_nope, expansion.w_uk_HNC)
    mix = mla_decode.absorbed_attention((q, q_rope), cache, part, expansion.scale, splits, PLAIN)
    ours = torch.einsum("thc,hvc->thv", mix, expansion.w_uv_HVC)
    exact = absorbed_by_definition(q_nope, q_rope, cache, part, expansion)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def test_many_queries_take_several_launches(noise, device, expansion, monkeypatch) -> None:
    part = paged([[30, 31, 32], [1, 2, 3]], device)
    q_nope, q_rope, cache = noise(6, HEADS, NOPE), noise(6, HEADS, ROPE), noise(64 * PAGE, LATENT + ROPE)
    kernels = TritonKernels(PLAIN, batch_invariant=True)
    at_once = kernels.absorbed_attention(q_nope, q_rope, cache, part, expansion)
    monkeypatch.setattr(mla_decode, "QUERIES_AT_ONCE", 4)
    assert torch.equal(kernels.absorbed_attention(q_nope, q_rope, cache, part, expansion), at_once)


def test_a_token_has_the_same_bits_in_a_prompt_and_alone(noise, device, expansion) -> None:
    part = paged([[30, 31, 32]], device)
    q_nope, q_rope, cache = noise(3, HEADS, NOPE), noise(3, HEADS, ROPE), noise(64 * PAGE, LATENT + ROPE)
    kernels = TritonKernels(PLAIN, batch_invariant=True)
    together = kernels.absorbed_attention(q_nope, q_rope, cache, part, expansion)
    only = Absorbed(part.tokens_BQ[:, 2:], part.lengths_BQ[:, 2:], part.blocks_BP, PAGE, 32, covers_step=False)
    assert torch.equal(kernels.absorbed_attention(q_nope, q_rope, cache, only, expansion)[0], together[2])


def test_what_lies_behind_the_length_is_never_read(noise, device, expansion) -> None:
    part = paged([[11]], device)
    cache = noise(64 * PAGE, LATENT + ROPE)
    cache[part.slots_BS[0, 11:]] = torch.nan
    outside = torch.ones(len(cache), dtype=torch.bool, device=device)
    outside[part.slots_BS[0, :11]] = False
    cache[outside] = torch.nan
    kernels = TritonKernels(PLAIN)
    out = kernels.absorbed_attention(noise(1, HEADS, NOPE), noise(1, HEADS, ROPE), cache, part, expansion)
    assert out.isfinite().all()


def test_the_context_of_the_step_is_an_upper_bound_only(noise, device, expansion) -> None:
    part = paged([[20], [9]], device)
    wider = Absorbed(part.tokens_BQ, part.lengths_BQ, part.blocks_BP, PAGE, 10**6, covers_step=True)
    q_nope, q_rope, cache = noise(2, HEADS, NOPE), noise(2, HEADS, ROPE), noise(64 * PAGE, LATENT + ROPE)
    kernels = TritonKernels(PLAIN)
    tight = kernels.absorbed_attention(q_nope, q_rope, cache, part, expansion)
    assert torch.equal(kernels.absorbed_attention(q_nope, q_rope, cache, wider, expansion), tight)


def test_a_sequence_has_the_same_bits_in_every_batch(noise, device, expansion) -> None:
    whole = paged([[40], [33], [17]], device)
    q_nope, q_rope, cache = noise(3, HEADS, NOPE), noise(3, HEADS, ROPE), noise(64 * PAGE, LATENT + ROPE)
    kernels = TritonKernels(PLAIN, batch_invariant=True)
    together = kernels.absorbed_attention(q_nope, q_rope, cache, whole, expansion)
    only = Absorbed(whole.tokens_BQ[1:2], whole.lengths_BQ[1:2], whole.blocks_BP[1:2], PAGE, 33, covers_step=False)
    alone = kernels.absorbed_attention(q_nope, q_rope, cache, only, expansion)
    assert torch.equal(alone[0], together[1])


@pytest.mark.parametrize("chunk", [7, 8192])
@pytest.mark.parametrize(("tokens", "context"), [(1, 1), (9, 9), (5, 30), (70, 83)])
def test_expanded_attention_is_exact_in_any_number_of_chunks(
    noise, expansion, tokens, context, chunk, monkeypatch
) -> None:
    monkeypatch.setattr(mla_prefill, "CHUNK", chunk)
    q_nope, q_rope = noise(tokens, HEADS, NOPE), noise(tokens, HEADS, ROPE)
    rows = noise(context, LATENT + ROPE)
    ours = mla_prefill.expanded_attention(q_nope, q_rope, rows, expansion, PLAIN)
    keys = torch.einsum("hnc,sc->hsn", expansion.w_uk_HNC.double(), rows[:, :LATENT].double())
    values = torch.einsum("hvc,sc->hsv", expansion.w_uv_HVC.double(), rows[:, :LATENT].double())
    scores = torch.einsum("thn,hsn->hts", q_nope.double(), keys)
    scores += torch.einsum("thr,sr->hts", q_rope.double(), rows[:, LATENT:].double())
    position = torch.arange(context, device=rows.device)
    hidden = position > position[-tokens:].unsqueeze(1)
    weights = (scores * expansion.scale).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(ours.double(), torch.einsum("hts,hsv->thv", weights, values), rtol=1e-4, atol=1e-5)


def test_prefill_equals_the_twin_in_bf16(noise, device) -> None:
    expansion = Expansion(
        noise(HEADS, NOPE, LATENT, dtype=torch.bfloat16), noise(HEADS, VALUE, LATENT, dtype=torch.bfloat16), 0.05
    )
    part = Expanded(2, 11, torch.randperm(40, device=device)[:20])
    q_nope = noise(12, HEADS, NOPE, dtype=torch.bfloat16)
    q_rope, cache = noise(12, HEADS, ROPE, dtype=torch.bfloat16), noise(40, LATENT + ROPE, dtype=torch.bfloat16)
    ours = TritonKernels(PLAIN).expanded_attention(q_nope, q_rope, cache, part, expansion)
    twin = TorchKernels().expanded_attention(q_nope, q_rope, cache, part, expansion)
    torch.testing.assert_close(ours, twin, rtol=0.03, atol=0.03)


def test_odd_widths_are_attended_in_both_forms(noise, device) -> None:
    nope, value, latent = 7, 5, 9
    expansion = Expansion(noise(HEADS, nope, latent), noise(HEADS, value, latent), 0.2)
    q_nope, q_rope = noise(1, HEADS, nope + ROPE)[..., :nope], noise(1, HEADS, ROPE)
    cache, part = noise(64 * PAGE, latent + ROPE), paged([[19]], device)
    expected = definition.attention(q_nope[0], q_rope[0], cache[part.slots_BS[0, :19]], expansion)
    kernels = TritonKernels(PLAIN)
    absorbed = kernels.absorbed_attention(q_nope, q_rope, cache, part, expansion)
    expanded = kernels.expanded_attention(q_nope, q_rope, cache, Expanded(0, 1, part.slots_BS[0, :19]), expansion)
    for form in (absorbed, expanded):
        definition.assert_close(form[0], expected, 1e-5)


def test_more_splits_where_the_batch_is_small() -> None:
    hopper = Hardware(None, 132, 3)
    assert [mla_decode.splits(queries, 128, hopper, batch_invariant=False) for queries in (1, 8, 64)] == [32, 8, 1]
    assert {mla_decode.splits(queries, 128, hopper, batch_invariant=True) for queries in (1, 8, 64)} == {16}
