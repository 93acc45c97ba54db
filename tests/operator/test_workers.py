"""The queue: one pass a key at a time, events fall together, failures come back, workers end with their objects."""

import asyncio

import pytest

from deepseek_operator import workers
from deepseek_operator.manifest import Key
from deepseek_operator.metrics import Metrics
from deepseek_operator.reconcile import Outcome

KEY = Key("ai", "chat")


class Recorder:
    """A reconciler that the test opens and closes, and that notices overlap."""

    def __init__(self, outcomes: list[Outcome | Exception]) -> None:
        self.outcomes = outcomes
        self.passes: list[Key] = []
        self.running: set[Key] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.done = asyncio.Event()

    async def __call__(self, key: Key) -> Outcome:
        assert key not in self.running
        self.running.add(key)
        await self.gate.wait()
        self.running.discard(key)
        self.passes.append(key)
        outcome = self.outcomes.pop(0)
        if not self.outcomes:
            self.done.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def queue(recorder: Recorder, *, resync: float = 1000.0) -> tuple[workers.Workers, Metrics]:
    metrics = Metrics()
    return workers.Workers(recorder, parallel=2, resync=resync, metrics=metrics), metrics


def passes_of(metrics: Metrics, result: str) -> float | None:
    return metrics.registry.get_sample_value("dsv3_operator_reconciles_total", {"result": result})


def run(test):
    asyncio.run(asyncio.wait_for(test, timeout=20))


def test_events_during_a_pass_make_exactly_one_more():
    async def test():
        recorder = Recorder([Outcome(True), Outcome(False)])
        recorder.gate.clear()
        made, metrics = queue(recorder)
        made.add(KEY)
        await asyncio.sleep(0)
        for _ in range(50):
            made.add(KEY)
        recorder.gate.set()
        await recorder.done.wait()
        await made.stop()
        assert recorder.passes == [KEY, KEY]
        assert passes_of(metrics, "success") == 2

    run(test())


def test_a_failed_pass_is_retried_and_counted(monkeypatch):
    monkeypatch.setattr(workers, "FIRST_RETRY", 0.01)

    async def test():
        recorder = Recorder([RuntimeError("the API server is away"), Outcome(False)])
        made, metrics = queue(recorder)
        made.add(KEY)
        await recorder.done.wait()
        await made.stop()
        assert passes_of(metrics, "error") == 1

    run(test())


@pytest.mark.parametrize(("resync", "look_again"), [(0.01, None), (1000.0, 0.01)])
def test_an_object_is_looked_at_again_without_events(resync, look_again):
    async def test():
        recorder = Recorder([Outcome(True, look_again), Outcome(True, look_again), Outcome(False)])
        made, _ = queue(recorder, resync=resync)
        made.add(KEY)
        await recorder.done.wait()
        await made.stop()
        assert len(recorder.passes) == 3

    run(test())


def test_a_worker_ends_with_its_object_and_a_new_object_gets_a_new_one():
    async def test():
        recorder = Recorder([Outcome(False)])
        made, metrics = queue(recorder)
        made.add(KEY)
        await recorder.done.wait()
        for _ in range(5):  # the worker's last steps need no more than the event loop's next turns
            await asyncio.sleep(0)
        assert metrics.registry.get_sample_value("dsv3_operator_objects") == 0
        recorder.outcomes.append(Outcome(False))
        recorder.done.clear()
        made.add(KEY)
        await recorder.done.wait()
        await made.stop()
        assert recorder.passes == [KEY, KEY]

    run(test())


def test_one_stuck_object_does_not_hold_up_another():
    async def test():
        other = Key("ai", "other")
        finished = asyncio.Event()

        async def reconcile(key: Key) -> Outcome:
            if key == KEY:
                await asyncio.Event().wait()
            finished.set()
            return Outcome(False)

        made = workers.Workers(reconcile, parallel=2, resync=1000.0, metrics=Metrics())
        made.add(KEY)
        made.add(other)
        await finished.wait()
        await made.stop()

    run(test())
