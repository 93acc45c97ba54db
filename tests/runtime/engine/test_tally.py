"""Histograms of the engine and the server."""

from hypothesis import given
from hypothesis import strategies as st

from deepseek_runtime.engine.tally import Tally


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 5)), max_size=30))
def test_each_bound_counts_what_is_not_above_it(observations: list[tuple[float, int]]) -> None:
    tally = Tally((-1.0, 0.0, 2.5))
    for value, times in observations:
        tally.add(value, times)
    for bound, count in zip((-1.0, 0.0, 2.5, float("inf")), tally.cumulative, strict=True):
        assert count == sum(times for value, times in observations if value <= bound)
    assert abs(tally.total - sum(value * times for value, times in observations)) < 1e-9
