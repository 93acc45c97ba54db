"""The planner's bytes per rank, against the tensors that the native engine's own sharding gives a rank."""

import math

import pytest

from deepseek_runtime.model.config import parse_config
from deepseek_runtime.model.parallelize import Shard
from deepseek_runtime.model.sharding import Precision, parameters
from deepseek_runtime.sizing import DEEPSEEK_V3_671B, GIB, RESERVE_BYTES, Layout, ModelShape, weight_bytes

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "vocab_size": 129280,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "n_shared_experts": 1,
    "max_position_embeddings": 163840,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}


def test_the_fields_of_config_json_give_the_known_shape() -> None:
    assert ModelShape.from_config(CONFIG) == DEEPSEEK_V3_671B
    assert not ModelShape.from_config({**CONFIG, "quantization_config": None}).quantised


def matrix_bytes(shape: tuple[int, ...], precision: Precision) -> int:
    """Bytes in memory: FP8 with an F32 scale per 128 × 128 where it is kept as stored, else 2 or 4 a value."""
    if precision is Precision.AS_STORED:
        return math.prod(shape) + 4 * math.prod(math.ceil(size / 128) for size in shape)
    return math.prod(shape) * (4 if precision is Precision.FLOAT32 else 2)


@pytest.mark.parametrize("ranks", [8, 16, 32])
@pytest.mark.parametrize("rank", [0, 7])
def test_a_rank_holds_what_the_planner_says(ranks: int, rank: int) -> None:
    config = parse_config(CONFIG)
    shard = Shard.of(config, rank, ranks)
    slices = ((shard.slice_of(parameter), parameter.precision) for parameter in parameters(config))
    held = sum(matrix_bytes(part.shape, precision) for part, precision in slices if part)
    planned = weight_bytes(ModelShape.from_config(CONFIG), Layout(ranks // 8, 8, split_dense=False))
    # kv_b and the routers leave FP8 and BF16 on the way in; the reserve pays for that.
    assert planned <= held < planned + 0.1 * RESERVE_BYTES
    assert held / GIB == pytest.approx(planned / GIB, rel=0.01)
