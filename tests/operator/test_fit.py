"""What the planner makes of a model, devices and wishes about parallelism."""

import pytest

from deepseek_operator import fit, plan
from deepseek_operator.api.v1alpha1 import Spec
from deepseek_operator.errors import SpecError

V3 = {"source": "hf://deepseek-ai/DeepSeek-V3-0324"}
UNKNOWN = {"source": "hf://dsv3/tutor"}


def judged(product="H200", per_node=8, model=V3, **spec):
    """The verdict on DeepSeek-V3, or another model, on some product."""
    return fit.judge(Spec.model_validate({"model": model, "accelerator": {"product": product}, **spec}), per_node)


def test_auto_takes_tensor_attention_and_the_fewest_nodes():
    found = judged("H100")
    assert (found.verdict, found.nodes, found.attention) == ("True", 2, "tensor")


def test_auto_takes_data_attention_where_heads_do_not_divide_over_the_ranks():
    found = judged(per_node=9, parallelism={"redundantExperts": 32})
    assert (found.verdict, found.nodes, found.attention) == ("True", 1, "data")
    assert "data attention, EP9, 32 redundant experts" in found.message


def test_tensor_attention_that_is_asked_for_is_not_exchanged_for_data():
    found = judged(per_node=9, nodes=1, parallelism={"attention": "tensor", "redundantExperts": 32})
    assert (found.verdict, found.attention) == ("False", "tensor")
    assert "128 attention heads do not divide over 9 ranks" in found.message
    assert "Nearest: 1 node × 9 (data attention" in found.message


def test_data_attention_weighs_whole_heads_on_every_rank():
    tensor, data = (judged(nodes=1, parallelism={"attention": attention}) for attention in ("tensor", "data"))
    assert data.attention == "data"
    assert data.weight_bytes_per_accelerator > tensor.weight_bytes_per_accelerator


def test_redundant_experts_count_in_the_weights():
    plain, copies = judged(), judged(parallelism={"redundantExperts": 8})
    one_expert_of_59_layers = 59 * 44_058_000
    assert copies.weight_bytes_per_accelerator - plain.weight_bytes_per_accelerator == pytest.approx(
        one_expert_of_59_layers, rel=1e-3
    )


def test_redundant_experts_may_cost_another_node():
    assert (judged().nodes, judged(parallelism={"redundantExperts": 256}).nodes) == (1, 2)


def test_redundant_experts_that_do_not_divide_are_refused_with_the_next_number_that_does():
    found = judged(nodes=1, parallelism={"redundantExperts": 30})
    assert found.verdict == "False"
    assert "256 + 30 redundant experts do not divide over 8 ranks" in found.message
    assert "the next valid number of redundant experts is 32" in found.message
    assert "Nearest: 1 node × 8 (tensor attention, EP8, 32 redundant experts) fits" in found.message


@pytest.mark.parametrize(("attention", "planned"), [("auto", None), ("tensor", "tensor"), ("data", "data")])
def test_what_is_not_known_is_left_to_the_runtime_unless_it_is_asked_for(attention, planned):
    found = judged(model=UNKNOWN, parallelism={"attention": attention})
    assert (found.verdict, found.attention) == ("Unknown", planned)


def test_drafts_without_a_layer_that_drafts_are_refused_before_the_download(settings):
    spec = {"model": {"source": "hf://deepseek-ai/DeepSeek-V2-Lite"}, "speculativeTokens": 1}
    manifest = {"metadata": {"name": "chat", "namespace": "ai", "uid": "1"}, "spec": spec}
    with pytest.raises(SpecError, match=r"speculativeTokens is 1, but hf://deepseek-ai/DeepSeek-V2-Lite has no MTP"):
        plan.make(manifest, settings)
    plan.make(manifest | {"spec": spec | {"speculativeTokens": 0}}, settings)
