"""The training network against transformers: two implementations, one checkpoint."""

from pathlib import Path

import pytest
import torch

from oracle import oracle
from tutor_training.export import BLOCK, checkpoint_tensors, dequantise, export, quantise
from tutor_training.network import Network
from tutor_training.vocabulary import ASSISTANT, BOS, TOKENIZER_SIZE, USER, learn_tokenizer

LENGTH = 48


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    """A random network that equals its own export: every weight already rounded as the checkpoint stores it."""
    torch.manual_seed(5)
    network = Network(LENGTH)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:  # large enough that routing and attention are far from uniform
            parameter.data.mul_(3 if "embed" not in name else 30)
    for router in network.routers():
        router.e_score_correction_bias.normal_(std=0.1)
    stored = checkpoint_tensors(network)
    for name, parameter in network.named_parameters():
        scale = stored.get(f"{name}_scale_inv")
        parameter.data = stored[name].float() if scale is None else dequantise(stored[name], scale)
    folder = tmp_path_factory.mktemp("tutor")
    export(network, learn_tokenizer(1, samples=500), folder)
    return network, folder


def test_transformers_computes_the_same_logits_from_the_export(exported: tuple[Network, Path]) -> None:
    network, folder = exported
    ids = torch.randint(5, TOKENIZER_SIZE, (2, LENGTH))
    with torch.no_grad():
        ours, theirs = network(ids)[0], oracle(folder)(ids).logits
    assert ours.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_fp8_blocks_come_back_within_the_format_s_precision() -> None:
    weight = torch.randn(200, 150) * torch.logspace(-3, 1, 150)
    stored, scale = quantise(weight)
    assert stored.dtype is torch.float8_e4m3fn
    assert scale.shape == (2, 2)
    blocks = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:200, :150]
    error = (dequantise(stored, scale) - weight).abs()
    # half a unit in the last of three mantissa bits, or half the smallest subnormal of the block
    assert (error <= torch.maximum(weight.abs() / 16, blocks * 2**-10) * 1.001).all()


def test_the_tokenizer_encodes_anything_and_keeps_digits_apart() -> None:
    tokenizer = learn_tokenizer(1, samples=500)
    text = "café 12345 减 \u4f60\u597d 🙂"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert [tokenizer.id_to_token(i) for i in ids if tokenizer.id_to_token(i) in set("12345")] == list("12345")
    assert tokenizer.token_to_id(BOS) == 0
    assert tokenizer.encode(f"{BOS}{USER}1{ASSISTANT}", add_special_tokens=False).ids[0] == 0
