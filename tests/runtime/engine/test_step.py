"""The plan survives its way through a flat list of integers."""

from hypothesis import given
from hypothesis import strategies as st

from deepseek_runtime.engine.step import Operation, SequencePlan, StepPlan

ints = st.integers(0, 2**40)
tuples = st.lists(ints, max_size=6).map(tuple)
plans = st.builds(SequencePlan, start=ints, token_ids=tuples, block_table=tuples, logits=st.integers(0, 4))


@given(st.sampled_from(Operation), st.lists(plans, max_size=5).map(tuple))
def test_a_decoded_plan_equals_the_encoded_one(operation: Operation, sequences: tuple[SequencePlan, ...]) -> None:
    plan = StepPlan(operation, sequences)
    assert StepPlan.decode(plan.encode()) == plan
