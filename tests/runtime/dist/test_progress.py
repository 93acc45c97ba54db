"""A stall is blamed on the rank that the others wait for. Times are numbers here."""

from collections.abc import Callable

from deepseek_runtime.dist.progress import MOST_MARKS, Progress, StallWatch


def watch(*counts: int, limit: float = 60, lag: float = 0) -> StallWatch:
    stalls = StallWatch(len(counts), limit, lag=lag)
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
    assert verdict == (
        None,
        "it stalls: ranks 0, 1 are inside exchange 5 for 61 s, and none shows which of them is the cause",
    )


def test_of_ranks_that_have_come_equally_far_the_silent_one_is_named() -> None:
    stalls = watch(9, 9, 9, limit=3, lag=2)
    for now in range(8):
        for rank in (0, 2):
            stalls.observe(rank, 9, now)
        assert (verdict := stalls.verdict(now)) is None or now > 5
    assert verdict == (1, "it stalls: ranks 0, 1, 2 are inside exchange 5 for 7 s, and rank 1 is silent for 7 s")


def test_a_verdict_waits_for_counts_that_may_be_on_their_way() -> None:
    stalls = watch(9, 8, limit=3, lag=2)
    assert stalls.verdict(4.9) is None
    assert stalls.verdict(5.1) is not None


def test_what_lasted_before_progress_was_expected_does_not_count() -> None:
    stalls = watch(9, 8)
    stalls.expect(5, now=1000)
    assert stalls.verdict(1004) is None
    assert stalls.ages(1004) == {0: 4, 1: 4}
    assert stalls.verdict(1006) is not None


def test_until_progress_is_expected_nothing_is_a_stall() -> None:
    stalls = StallWatch(2)
    for rank in range(2):
        stalls.observe(rank, 0, now=0)
    assert stalls.verdict(10**9) is None


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
    stalls = StallWatch(2, 60)
    stalls.observe(0, 9, now=0)
    assert stalls.verdict(1000) is None


class Device:
    """Does what it is given only when told to: its clock is the number of marks that it has passed."""

    def __init__(self) -> None:
        self.given = self.passed = 0

    def mark(self) -> Callable[[], bool]:
        self.given += 1
        number = self.given
        return lambda: number <= self.passed


def on_device(device: Device) -> Progress:
    progress = Progress()
    progress.mark = device.mark
    return progress


def test_a_rank_has_come_as_far_as_its_device_and_not_as_far_as_its_program() -> None:
    device = Device()
    progress = on_device(device)
    for _ in range(3):
        with progress:
            pass
    reached = []
    for device.passed in range(7):
        reached.append(progress.reached)
    assert (progress.count, reached) == (6, [0, 1, 2, 3, 4, 5, 6])


def test_the_rank_whose_device_hangs_is_named_though_its_program_ran_ahead() -> None:
    devices = [Device() for _ in range(3)]
    ranks = [on_device(device) for device in devices]
    for progress in ranks:
        for _ in range(4):
            with progress:
                pass
    for follower in ranks[1:]:
        follower.enter()  # awaits the next plan, while rank 0 awaits its device
    for device in devices:
        device.passed = 5  # inside the third exchange
    devices[2].passed = 4
    verdict = watch(*(progress.reached for progress in ranks)).verdict(61)
    assert verdict == (2, "it stalls: rank 2 is before exchange 3 for 61 s, which ranks 0, 1 wait for")


def test_marks_that_the_device_has_passed_are_dropped_without_being_asked_for() -> None:
    device = Device()
    progress = on_device(device)
    asked = []
    progress.mark = lambda: lambda: asked.append(1) is None
    for _ in range(MOST_MARKS):
        with progress:
            pass
    assert len(asked) > MOST_MARKS
