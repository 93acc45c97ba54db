"""Plans and outcomes survive their way through a flat list of integers."""

from hypothesis import given
from hypothesis import strategies as st

from deepseek_runtime.engine.step import Operation, Outcome, SequenceOutcome, SequencePlan, StepPlan

ints = st.integers(0, 2**40)
tuples = st.lists(ints, max_size=6).map(tuple)
plans = st.builds(SequencePlan, start=ints, token_ids=tuples, block_table=tuples, logits=st.integers(0, 4), rank=ints)
outcomes = st.lists(st.builds(SequenceOutcome, ints, ints, ints), max_size=5).map(tuple).map(Outcome)


@given(st.sampled_from(Operation), st.lists(plans, max_size=5).map(tuple))
def test_a_decoded_plan_equals_the_encoded_one(operation: Operation, sequences: tuple[SequencePlan, ...]) -> None:
    plan = StepPlan(operation, sequences)
    assert StepPlan.decode(plan.encode()) == plan


@given(outcomes)
def test_a_decoded_outcome_equals_the_encoded_one(outcome: Outcome) -> None:
    assert Outcome.decode(outcome.encode()) == outcome
