"""A stall is blamed on the rank that the others wait for. Times are numbers here."""

from deepseek_runtime.dist.progress import Progress, StallWatch


def watch(*counts: int, limit: float = 60) -> StallWatch:
    stalls = StallWatch(len(counts), limit, since=0)
    for rank, count in enumerate(counts):
        stalls.observe(rank, count, now=0)
    return stalls


def test_a_rank_counts_when_it_enters_an_exchange_and_when_it_leaves_it() -> None:
    progress = Progress()
    with progress:
        assert progress.count == 1
    assert progress.count == 2


def test_the_rank_that_has_not_entered_what_others_wait_in_is_named() -> None:
    verdict = watch(9, 9, 8, 9).verdict(61)
    assert verdict == (2, "it stalls: rank 2 is before exchange 5 for 61 s, which ranks 0, 1, 3 wait for")


def test_a_group_that_hangs_in_the_same_exchange_is_described_as_such() -> None:
    verdict = watch(9, 9).verdict(61)
    assert verdict == (0, "it stalls: ranks 0, 1 are inside exchange 5 for 61 s")


def test_any_count_that_changes_is_progress_of_the_group() -> None:
    stalls = watch(9, 8)
    stalls.observe(1, 9, now=50)
    assert stalls.verdict(100) is None
    assert stalls.verdict(111) is not None


def test_a_count_that_is_repeated_is_no_progress() -> None:
    stalls = watch(9, 8)
    stalls.observe(1, 8, now=50)
    assert stalls.verdict(61) is not None


def test_many_stalled_ranks_are_counted_rather_than_listed() -> None:
    verdict = watch(*[1] * 20, 2).verdict(61)
    assert verdict is not None
    assert "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more are inside exchange 1" in verdict[1]


def test_nothing_is_said_before_every_rank_was_heard() -> None:
    stalls = StallWatch(2, 60, since=0)
    stalls.observe(0, 9, now=0)
    assert stalls.verdict(1000) is None
