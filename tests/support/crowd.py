"""Many clients at once, of every kind, some of which leave; each attempt ends in a `Seen` that says what came of it."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx

HUNG = 90.0
"""Seconds without an end after which an attempt counts as hung."""
PARTING = 5.0
"""Seconds that a process may go on for after it has closed its port, on a busy machine."""
LONGEST_WAIT = 1.0
"""Seconds after which a client tries again whatever it was told, so that it also meets a server about to end."""
Outcome = Literal["whole", "left", "refused", "error", "error event", "unread", "gone", "odd"]
"""`gone` is a refused connection, `unread` one that was closed without a word, both by a server at its very end."""


@dataclass(frozen=True)
class Plan:
    """One request, and when its client leaves: after seconds, after so many events of its stream, or not at all."""

    id: str
    path: str
    body: dict[str, Any]
    patience: float = HUNG
    events: int | None = None

    @property
    def leaves(self) -> bool:
        return self.patience < HUNG or self.events is not None


@dataclass
class Seen:
    """What a client saw. `reasons` are the finish reasons of the choices; `note` is an error's code, or what is odd.

    `begun`: there was a status. `sent` is in seconds of the monotonic clock.
    """

    plan: Plan
    outcome: Outcome = "odd"
    reasons: dict[int, str] = field(default_factory=dict)
    note: str = ""
    begun: bool = False
    sent: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        body = {**self.plan.body, "messages": ..., "prompt": ...}
        when = f"sent at {self.sent:.3f}, begun: {self.begun}"
        return f"{self.plan.id} {self.outcome} ({self.note}), {when}, reasons {self.reasons}: {self.plan.path} {body}"


def random_plan(dice: random.Random, id_: str) -> Plan:
    """A chat or a completion, whole or streamed, of one to three choices; one in four clients leaves."""
    question = f"What is {dice.randint(1, 999)} plus {dice.randint(1, 999)}?"
    body = {"model": "test", "n": dice.choice([1, 1, 1, 2, 3]), "stream": dice.random() < 0.5}
    body |= {"max_tokens": dice.randint(1, 48), "temperature": dice.choice([0, 1]), "ignore_eos": dice.random() < 0.3}
    chat = dice.random() < 0.6
    body |= {"messages": [{"role": "user", "content": question}]} if chat else {"prompt": question}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    match dice.randrange(8):
        case 0:
            return Plan(id_, path, body, patience=dice.choice([0.0, 0.02, 0.2, 1.0]) * dice.random())
        case 1 if body["stream"]:
            return Plan(id_, path, body, events=dice.randint(1, 20))
        case _:
            return Plan(id_, path, body)


class Crowd:
    """Clients of one server; `serves` says whether its process is still there, and `on_seen` hears of every attempt."""

    def __init__(self, url: str, serves: Callable[[], bool], on_seen: Callable[[Seen], None] = lambda _: None) -> None:
        self.seen: list[Seen] = []
        self.parting = 0.0
        self._url = url
        self._serves = serves
        self._on_seen = on_seen

    async def client(self, name: str, more: Callable[[], bool]) -> None:
        """One request after the other while `more` says so and the server is there; what is refused is sent again."""
        dice, seen = random.Random(name), None
        async with httpx.AsyncClient(base_url=self._url, timeout=None) as client:
            for id_ in (f"{name}-{number}" for number in itertools.count()):
                if not more():
                    return
                refused = seen and seen.outcome == "refused"
                plan = replace(seen.plan, id=id_) if seen and refused else random_plan(dice, id_)
                seen, wait = await self._attempt(client, plan)
                self.seen.append(seen)
                self._on_seen(seen)
                if seen.outcome == "gone":
                    return
                await asyncio.sleep(min(wait, LONGEST_WAIT))

    async def _attempt(self, client: httpx.AsyncClient, plan: Plan) -> tuple[Seen, float]:
        """What came of it, and the seconds to wait before the next one."""
        seen = Seen(plan)
        try:
            async with asyncio.timeout(plan.patience):
                return seen, await self._ask(client, seen)
        except TimeoutError:
            seen.outcome, seen.note = ("left", "") if plan.leaves else ("odd", f"no end within {HUNG:g} s")
        except httpx.ConnectError as error:
            seen.outcome, seen.note = "gone" if await self._ends() else "odd", repr(error)
        except httpx.TransportError as error:
            seen.outcome, seen.note = "unread" if not seen.begun and await self._ends() else "odd", repr(error)
        except (ValueError, LookupError) as error:
            seen.outcome, seen.note = "odd", repr(error)
        return seen, 0.0

    async def _ends(self) -> bool:
        """Whether the server that refuses connections is gone, or about to be: its port closes a little before."""
        refused = time.monotonic()
        while self._serves():
            if time.monotonic() - refused > PARTING:
                return False
            await asyncio.sleep(0.01)
        self.parting = max(self.parting, time.monotonic() - refused)
        return True

    async def _ask(self, client: httpx.AsyncClient, seen: Seen) -> float:
        plan = seen.plan
        async with client.stream("POST", plan.path, json=plan.body, headers={"X-Request-Id": plan.id}) as response:
            seen.begun = True
            if response.status_code != 200:
                _take_error(seen, json.loads(await response.aread()), response.status_code)
                return float(response.headers.get("Retry-After", "0"))
            if plan.body["stream"]:
                await _take_stream(seen, response.aiter_lines())
            else:
                _take_choices(seen, json.loads(await response.aread()))
                _close(seen, complete=True)
        return 0.0


def _take_error(seen: Seen, body: dict[str, Any], status: int) -> None:
    """An answer other than 200, clean if it has the envelope."""
    error = body["error"]
    seen.note = f"{status} {error['code']}"
    clean = set(error) == {"message", "type", "param", "code"} and error["message"]
    seen.outcome = "odd" if not clean else "refused" if status == 429 else "error"


async def _take_stream(seen: Seen, lines: AsyncIterator[str]) -> None:
    """Events up to the last one, or to where the client leaves."""
    count, last = 0, ""
    async for line in lines:
        if not line.startswith("data: "):
            continue
        count, last = count + 1, line.removeprefix("data: ")
        if last != "[DONE]":
            _take_event(seen, json.loads(last))
        if count == seen.plan.events:
            seen.outcome = "left"
            return
    if seen.outcome != "error event":
        _close(seen, complete=last == "[DONE]")


def _take_event(seen: Seen, event: dict[str, Any]) -> None:
    if seen.outcome == "error event":
        raise ValueError("an event follows an error")
    if "error" in event:
        _take_error(seen, event, 200)
        seen.outcome = "odd" if seen.outcome == "odd" else "error event"
    else:
        _take_choices(seen, event)


def _take_choices(seen: Seen, body: dict[str, Any]) -> None:
    seen.reasons |= {choice["index"]: choice["finish_reason"] for choice in body["choices"] if choice["finish_reason"]}


def _close(seen: Seen, *, complete: bool) -> None:
    """Whole is what came to its end with a finish reason for each choice."""
    whole = complete and set(seen.reasons) == set(range(seen.plan.body["n"])) and {*seen.reasons.values()} <= COMPLETE
    seen.outcome, seen.note = ("whole", "") if whole else ("odd", f"no whole answer, complete: {complete}")


COMPLETE = {"stop", "length"}
