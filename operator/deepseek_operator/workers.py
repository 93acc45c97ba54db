"""One worker a key: events of the same object fall together, passes over it never overlap, failures are retried.

A worker is a task with an alarm clock. It rests until its key is added again, until its last pass asked to look again,
or until the periodic resync, whichever is first; and it ends with its object.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from deepseek_operator.manifest import Key
from deepseek_operator.metrics import Metrics
from deepseek_operator.reconcile import Outcome

LOGGER = logging.getLogger(__name__)
FIRST_RETRY = 1.0
LAST_RETRY = 60.0

Reconcile = Callable[[Key], Awaitable[Outcome]]


def retry_delay(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: 1, 2, 4 … 60."""
    return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 16))


class Workers:
    """All workers of the process, of which a limited number reconcile at the same time."""

    def __init__(self, reconcile: Reconcile, *, parallel: int, resync: float, metrics: Metrics) -> None:
        self._reconcile = reconcile
        self._resync = resync
        self._metrics = metrics
        self._slots = asyncio.Semaphore(parallel)
        self._alarms: dict[Key, asyncio.Event] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def add(self, key: Key) -> None:
        """Ask for a pass over a key; any number of calls before its start make one pass."""
        if key not in self._alarms:
            self._alarms[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._work(key), name=f"worker {key.namespace}/{key.name}")
            self._metrics.objects.set(len(self._tasks))
        self._alarms[key].set()

    async def stop(self) -> None:
        """End all workers; a pass cut short is completed by the next start, since nothing is kept between passes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, key: Key) -> None:
        alarm, failures = self._alarms[key], 0
        try:
            while True:
                alarm.clear()
                outcome = await self._attempt(key)
                failures = failures + 1 if outcome is None else 0
                # An event that came during the last pass may be the object's rebirth: look once more before leaving.
                if outcome is not None and not outcome.exists and not alarm.is_set():
                    return
                await self._rest(alarm, outcome, failures)
        finally:
            del self._alarms[key], self._tasks[key]
            self._metrics.objects.set(len(self._tasks))

    async def _attempt(self, key: Key) -> Outcome | None:
        """Make one pass; None says that it failed."""
        async with self._slots:
            with self._metrics.seconds.time():
                try:
                    outcome = await self._reconcile(key)
                except Exception as error:
                    self._metrics.reconciles.labels("error").inc()
                    LOGGER.warning("%s/%s: %s: %s", key.namespace, key.name, type(error).__name__, error)
                    LOGGER.debug("%s/%s", key.namespace, key.name, exc_info=True)
                    return None
        self._metrics.reconciles.labels("success").inc()
        return outcome

    async def _rest(self, alarm: asyncio.Event, outcome: Outcome | None, failures: int) -> None:
        # A tenth of chance keeps a thousand objects from being looked at in the same second, for ever after a restart.
        longest = self._resync * random.uniform(0.9, 1.0)
        if outcome is None:
            longest = retry_delay(failures)
        elif outcome.look_again is not None:
            longest = min(longest, outcome.look_again)
        try:
            async with asyncio.timeout(longest):
                await alarm.wait()
        except TimeoutError:
            LOGGER.debug("looking again without an event")
