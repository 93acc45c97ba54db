"""Events on their way from the engine's thread to whoever reads them on the event loop."""

import asyncio
import threading
from typing import Any

from deepseek_runtime.engine.engine import Token
from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.server.courier import Courier, Inbox


def token(number: int) -> Token:
    return Token(Sampled(number), None)


def numbers(events: list[Any]) -> list[tuple[int, int]]:
    return [(choice, event.sampled.token) for choice, event in events]


def in_a_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_all_that_came_while_nobody_looked_is_taken_at_once_and_in_order() -> None:
    async def main() -> None:
        inbox = Inbox(Courier(), limit=100, overrun=lambda: None)
        sinks = [inbox.sink(choice) for choice in range(2)]
        in_a_thread(lambda: [sinks[i % 2](token(i)) for i in range(6)])
        assert numbers(await inbox.take()) == [(i % 2, i) for i in range(6)]

    asyncio.run(main())


def test_a_step_wakes_the_loop_once_however_many_streams_it_feeds() -> None:
    async def main() -> None:
        loop, courier, calls = asyncio.get_running_loop(), Courier(), []
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: calls.append(wake(*args))  # type: ignore[method-assign, assignment]
        inboxes = [Inbox(courier, limit=10, overrun=lambda: None) for _ in range(64)]
        in_a_thread(lambda: [inbox.sink(0)(token(1)) for inbox in inboxes])
        assert len(calls) == 1
        assert [len(await inbox.take()) for inbox in inboxes] == [1] * 64
        in_a_thread(lambda: inboxes[0].sink(0)(token(2)))
        assert numbers(await inboxes[0].take()) == [(0, 2)]
        assert len(calls) == 2

    asyncio.run(main())


def test_a_reader_waits_for_events_and_can_be_woken_without_any() -> None:
    async def main() -> None:
        inbox = Inbox(Courier(), limit=10, overrun=lambda: None)
        reading = asyncio.ensure_future(inbox.take())
        await asyncio.sleep(0)
        assert not reading.done()
        inbox.wake()
        assert await reading == []
        reading = asyncio.ensure_future(inbox.take())
        await asyncio.sleep(0)
        in_a_thread(lambda: inbox.sink(3)(token(7)))
        assert numbers(await reading) == [(3, 7)]

    asyncio.run(main())


def test_an_inbox_that_nobody_reads_says_so_once_and_grows_no_further() -> None:
    async def main() -> None:
        complaints: list[str] = []
        inbox = Inbox(Courier(), limit=3, overrun=lambda: complaints.append("full"))
        for number in range(1000):
            inbox.put(0, token(number))
        assert complaints == ["full"]
        assert numbers(await inbox.take()) == [(0, number) for number in range(4)]

    asyncio.run(main())


def test_events_for_a_loop_that_has_ended_are_dropped() -> None:
    async def main() -> Inbox:
        return Inbox(Courier(), limit=3, overrun=lambda: None)

    asyncio.run(main()).sink(0)(token(1))
