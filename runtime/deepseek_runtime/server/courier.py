"""From the engine's thread to the event loop: all events of a step in one wake-up, each to the inbox that waits for it.

A wake-up of the loop costs more than a token; so does one of a task. Whatever waits when the loop or the task comes to
it is taken at once, and a server under load works in larger portions instead of falling behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from deepseek_runtime.engine.engine import Event

Numbered = tuple[int, Event]
"""An event, with the number of the choice that it belongs to."""


class Courier:
    """Carries events of the engine's thread over to the event loop that made the inboxes."""

    def __init__(self) -> None:
        self._parcels: deque[tuple[Inbox, int, Event]] = deque()
        self._called = False

    def deliver(self, inbox: Inbox, choice: int, event: Event) -> None:
        """Put an event into an inbox, from any thread and in order."""
        self._parcels.append((inbox, choice, event))
        if not self._called:
            self._called = True
            self._call(inbox.loop)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(self._unpack)
        except RuntimeError:  # the loop has ended, and with it whoever waited
            self._parcels.clear()
            self._called = False

    def _unpack(self) -> None:
        self._called = False  # first: what comes from now on calls again, at worst for nothing
        while self._parcels:
            inbox, choice, event = self._parcels.popleft()
            inbox.put(choice, event)


class Inbox:
    """Events of one request that nobody has read yet. To be made and read on the event loop.

    More than `limit` of them means that nobody reads: `overrun` is then called, once, and no more is kept.
    """

    def __init__(self, courier: Courier, *, limit: int, overrun: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._courier = courier
        self._limit = limit
        self._overrun = overrun
        self._events: list[Numbered] = []
        self._waiter: asyncio.Future[None] | None = None
        self._full = False

    def sink(self, choice: int) -> Callable[[Event], None]:
        """What the engine calls with the events of a choice."""
        return partial(self._courier.deliver, self, choice)

    def put(self, choice: int, event: Event) -> None:
        """Add an event, and wake whoever waits."""
        if self._full:
            return
        self._events.append((choice, event))
        if len(self._events) > self._limit:
            self._full = True
            self._overrun()
        self.wake()

    @property
    def empty(self) -> bool:
        return not self._events

    def wake(self) -> None:
        """Let whoever waits look again, also when nothing has come."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Numbered]:
        """Everything that has come; waits for it, and is empty when woken without it."""
        if not self._events:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events
