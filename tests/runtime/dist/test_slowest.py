"""Which rank readiness names while the group still waits."""

import pytest

from deepseek_runtime.dist.progress import StallWatch


def watch(*counts: int) -> StallWatch:
    """What rank 0 knows of ranks that all reached these counts at second 100."""
    made = StallWatch(ranks=len(counts), limit=60.0, since=100.0)
    for rank, count in enumerate(counts):
        made.observe(rank, count, 100.0)
    return made


def test_the_slowest_rank_is_the_one_that_others_wait_for() -> None:
    suspect = watch(9, 6, 9).slowest(131.0)
    assert suspect is not None
    assert (suspect.rank, suspect.age) == (1, 31.0)
    assert suspect.message == "rank 1 is before exchange 4 for 31 s, which ranks 0, 2 wait for"


def test_a_rank_that_falls_behind_while_the_others_go_on_grows_old() -> None:
    made = watch(4, 4)
    for second in range(101, 140):
        made.observe(0, 4 + 2 * (second - 100), float(second))
    suspect = made.slowest(140.0)
    assert suspect is not None
    assert (suspect.rank, suspect.age) == (1, 40.0)
    assert made.ages(140.0) == {0: 1.0, 1: 40.0}


def test_of_ranks_that_are_equally_far_the_oldest_is_named() -> None:
    made = watch(2, 2, 2)
    made.observe(0, 4, 110.0)
    made.observe(1, 4, 115.0)
    made.observe(2, 4, 105.0)
    suspect = made.slowest(120.0)
    assert suspect is not None
    assert (suspect.rank, suspect.age) == (2, 15.0)


@pytest.mark.parametrize("now", [100.0, 1000.0])
def test_nobody_is_named_before_all_were_heard(now: float) -> None:
    made = StallWatch(ranks=3, limit=60.0, since=0.0)
    made.observe(0, 4, 100.0)
    made.observe(2, 2, 100.0)
    assert made.slowest(now) is None
