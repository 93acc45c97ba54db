"""The published check values of YaRN and of the softmax scale, and transformers' tables at every kind of position."""

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

from deepseek_runtime.kernels.mla import rotate
from deepseek_runtime.model.config import parse_config
from deepseek_runtime.model.rope import Rope, attention_scale, inverse_frequencies, table_scale
from tiny_checkpoint import Config, kimi_k2_config, moonlight_config, v2_lite_config, v3_config

REAL_HEADS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
V3 = parse_config(v3_config(**REAL_HEADS))


@pytest.mark.parametrize(
    ("pair", "expected"),
    [(0, 1.0), (10, 0.0562341), (16, 0.0055), (22, 1.77828e-4), (23, 3.33380e-5), (31, 3.33380e-6)],
)
def test_frequencies_are_those_of_the_real_model(pair: int, expected: float) -> None:
    assert inverse_frequencies(V3.rope, 64)[pair].item() == pytest.approx(expected, rel=1e-5)


def test_the_softmax_scale_has_mscale_squared_whatever_the_length() -> None:
    assert attention_scale(V3) == pytest.approx(0.1352338, abs=1e-7)
    assert attention_scale(parse_config(v2_lite_config(**REAL_HEADS))) == pytest.approx(0.1147214, abs=1e-7)


def test_without_scaling_the_scale_is_that_of_the_expanded_head() -> None:
    plain = parse_config(v3_config(**REAL_HEADS, rope_scaling=None))
    assert attention_scale(plain) == pytest.approx(192**-0.5)
    assert table_scale(plain.rope) == 1.0


def test_the_tables_are_scaled_by_the_ratio_of_the_two_mscales() -> None:
    assert table_scale(V3.rope) == 1.0
    one_sided = parse_config(v3_config(rope_scaling={**v3_config()["rope_scaling"], "mscale_all_dim": 0}))
    assert table_scale(one_sided.rope) == pytest.approx(1.36888, abs=1e-5)


def test_integers_in_the_scaling_fields_are_taken_as_floats() -> None:
    scaling = parse_config(v3_config()).rope
    values = (scaling.theta, scaling.factor, scaling.beta_fast, scaling.beta_slow)
    assert [type(value) for value in values] == [float] * 4


def test_neighbouring_dims_form_a_pair() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    quarter, none = torch.tensor(1j), torch.tensor(1 + 0j)
    assert rotate(x, torch.stack((quarter, none)).unsqueeze(0)).tolist() == [[-2.0, 1.0, 3.0, 4.0]]


def test_tables_are_float32_also_at_the_last_position() -> None:
    position = 163839
    got = Rope(V3, torch.device("cpu")).rotations(torch.tensor([position]))
    exact = position * inverse_frequencies(V3.rope, 64).double()
    assert got.dtype == torch.complex64
    torch.testing.assert_close(got[0].real.double(), exact.cos(), atol=5e-3, rtol=0)
    torch.testing.assert_close(got[0].imag.double(), exact.sin(), atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    "raw",
    [v3_config(), v2_lite_config(), kimi_k2_config(), moonlight_config()],
    ids=["V3", "V2-Lite", "K2", "Moonlight"],
)
def test_tables_are_transformers_at_the_first_and_the_last_positions(raw: Config) -> None:
    config, last = parse_config(raw), raw["max_position_embeddings"]
    positions = torch.cat((torch.arange(50), torch.arange(last - 50, last)))
    fields = {name: raw[name] for name in raw if name not in ("architectures", "model_type")}
    theirs = DeepseekV3RotaryEmbedding(DeepseekV3Config(**fields))
    cos, sin = theirs(torch.zeros(1), positions.unsqueeze(0))
    got = Rope(config, torch.device("cpu")).rotations(positions)
    pairs = config.qk_rope_head_dim // 2
    torch.testing.assert_close(got, torch.complex(cos, sin)[0, :, :pairs], atol=1e-5, rtol=0)


def test_scores_depend_on_the_distance_only() -> None:
    rope = Rope(V3, torch.device("cpu"))
    q, k = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(0)).unbind(0)

    def score(at: int, other: int) -> float:
        turned = [rotate(x, rope.rotations(torch.tensor([p]))) for x, p in ((q, at), (k, other))]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(1005, 1002), abs=1e-3)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-2)
