"""Every element of a checkpoint has an owner, and exactly one where ranks share it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_runtime.model.config import ModelConfig, parse_config
from deepseek_runtime.model.parallelize import ParallelError, Shard
from deepseek_runtime.model.sharding import Placement, known_surplus, parameters
from tiny_checkpoint import random_tensors, v2_lite_config, v3_config

SIZES = st.sampled_from([1, 2, 4, 8, 16])


@st.composite
def configs(draw: st.DrawFn, ranks: int) -> ModelConfig:
    """Shapes whose experts divide over the ranks, and whose heads do or do not."""
    return parse_config(
        v3_config(
            n_routed_experts=draw(st.sampled_from([8, 16, 24])) * ranks,
            num_attention_heads=draw(st.integers(1, 24)),
            q_lora_rank=draw(st.sampled_from([None, 24])),
            num_hidden_layers=2,
            v_head_dim=draw(st.integers(1, 8)),
        )
    )


@settings(deadline=None)
@given(data=st.data(), ranks=SIZES)
def test_every_element_is_owned_once_where_it_is_split_and_by_all_where_not(data: st.DataObject, ranks: int) -> None:
    config = data.draw(configs(ranks))
    shards = [Shard.of(config, rank, ranks) for rank in range(ranks)]
    for parameter in parameters(config):
        cuts = [cut for shard in shards if (cut := shard.slice_of(parameter))]
        held = sum(math.prod(cut.shape) for cut in cuts)
        by_heads = parameter.placement in (Placement.HEAD_ROWS, Placement.HEAD_COLUMNS) and shards[0].splits_heads
        if parameter.placement is Placement.EXPERT or by_heads:
            boxes = {(row, column) for cut in cuts for row in (cut.rows,) for column in (cut.columns,)}
            assert len(boxes) == len(cuts)
            assert held == math.prod(parameter.shape)
        else:
            assert held == math.prod(parameter.shape) * ranks


@settings(deadline=None)
@given(ranks=SIZES)
def test_heads_and_experts_are_contiguous_blocks_in_the_order_of_ranks(ranks: int) -> None:
    config = parse_config(v3_config(n_routed_experts=16 * 4, num_attention_heads=16))
    shards = [Shard.of(config, rank, ranks) for rank in range(ranks)]
    assert [head for shard in shards for head in shard.heads] == list(range(16))
    assert [expert for shard in shards for expert in shard.experts] == list(range(64))


def test_heads_that_do_not_divide_stay_whole() -> None:
    shard = Shard.of(parse_config(v3_config(num_attention_heads=3)), 1, 2)
    assert not shard.splits_heads
    assert list(shard.heads) == [0, 1, 2]


def test_experts_that_do_not_divide_are_refused_with_the_next_size() -> None:
    with pytest.raises(
        ParallelError, match="8 experts do not divide over 3 ranks; the next valid number of ranks is 4"
    ):
        Shard.of(parse_config(v3_config()), 0, 3)


@pytest.mark.parametrize("raw", [v3_config(), v2_lite_config()], ids=["V3", "V2-Lite"])
def test_the_table_of_parameters_is_the_checkpoint(raw: dict[str, object]) -> None:
    config = parse_config(raw)
    written = random_tensors(raw, 0)
    known = {parameter.name: parameter.shape for parameter in parameters(config)}
    assert all(tuple(written[name].shape) == shape for name, shape in known.items())
    assert written.keys() - known.keys() == known_surplus(config, written.keys())


def test_the_parameters_of_the_real_model_add_up_to_its_published_size() -> None:
    config = parse_config(
        v3_config(
            vocab_size=129280,
            hidden_size=7168,
            intermediate_size=18432,
            moe_intermediate_size=2048,
            num_hidden_layers=61,
            first_k_dense_replace=3,
            n_routed_experts=256,
            num_experts_per_tok=8,
            n_group=8,
            topk_group=4,
            num_attention_heads=128,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
        )
    )
    sizes = {parameter.name: math.prod(parameter.shape) for parameter in parameters(config)}
    mtp = sum(size for name, size in sizes.items() if name.startswith("model.layers.61."))
    assert (sum(sizes.values()) - mtp) / 1e9 == pytest.approx(671.03, abs=0.01)
    assert mtp / 1e9 == pytest.approx(11.61, abs=0.01)
