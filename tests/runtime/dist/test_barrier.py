"""Ranks wait for each other over a real store of torch, each on a thread of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from deepseek_runtime.dist.barrier import BarrierTimeoutError, StoreBarrier


def test_all_pass_once_the_last_arrives() -> None:
    store, passed = HashStore(), threading.Semaphore(0)

    def arrive(rank: int) -> None:
        StoreBarrier(store, rank, 3).wait("weights", timeout=20)
        passed.release()

    with ThreadPoolExecutor(3) as pool:
        early = [pool.submit(arrive, rank) for rank in (0, 1)]
        assert not passed.acquire(timeout=0.3), "two of three must wait"
        late = pool.submit(arrive, 2)
        for rank in (*early, late):
            rank.result(timeout=20)


def test_the_laggard_is_named_with_its_progress() -> None:
    store = HashStore()
    StoreBarrier(store, 1, 3).report_progress(40, 160)
    with pytest.raises(
        BarrierTimeoutError,
        match=r"weights: after 0\.2 s 2 of 3 ranks have not arrived: rank 1 \(25% done\), rank 2 \(no progress",
    ):
        StoreBarrier(store, 0, 3).wait("weights", timeout=0.2)


def test_who_waits_is_told_about_the_laggards_meanwhile() -> None:
    store, told = HashStore(), []

    def on_wait(sentence: str) -> None:
        told.append(sentence)
        StoreBarrier(store, 1, 2).wait("weights", timeout=20)

    StoreBarrier(store, 0, 2, report_every=0).wait("weights", timeout=20, on_wait=on_wait)
    assert told == ["weights: 1 of 2 ranks have not arrived: rank 1 (no progress reported)"]


def test_a_large_group_s_laggards_are_counted_not_listed() -> None:
    sentence = StoreBarrier(HashStore(), 0, 144).describe_missing("weights")
    assert sentence.startswith("144 of 144 ranks have not arrived: rank 0 (no progress reported), rank 1 ")
    assert sentence.endswith(", 140 more")


def test_progress_is_not_written_for_every_tensor_but_always_at_the_end() -> None:
    store = HashStore()
    barrier = StoreBarrier(store, 0, 1)
    for done in (1, 2, 3):
        barrier.report_progress(done, 100)
    assert store.get("progress/0") == b"1 100"
    barrier.report_progress(100, 100)
    assert store.get("progress/0") == b"100 100"
