"""Load on an endpoint: so many clients at a time, each asking again as soon as it has its answer.

Closed loops, bounded in requests and in time. Prompts are random words, all different, so that no prefix cache helps;
a probe finds out how many words make a prompt of the wanted length on this endpoint.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from deepseek_runtime.client.endpoint import Endpoint, EndpointError, text_of

PROBE_WORDS = (16, 144)
WORDS = (
    "river", "stone", "window", "garden", "letter", "market", "winter", "bridge", "silver", "morning", "paper",
    "island", "engine", "mirror", "forest", "harbour", "candle", "village", "summer", "pocket", "number", "station",
    "yellow", "valley", "kitchen", "thunder", "travel", "shadow", "corner", "ladder", "copper", "basket",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What each client asks for. A level ends after `requests` answers, or no new request begins after `seconds`."""

    model: str
    prompt_tokens: int
    output_tokens: int
    requests: int
    seconds: float
    seed: int = 0


@dataclass(slots=True)
class Answer:
    """One request's fate, in seconds of the monotonic clock. `pieces` are the times at which text came."""

    sent: float
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """All answers at one concurrency, and how long they took together."""

    concurrency: int
    seconds: float
    answers: Sequence[Answer]


class LoadGenerator:
    """Asks one endpoint."""

    def __init__(self, endpoint: Endpoint, workload: Workload) -> None:
        self._endpoint = endpoint
        self._work = workload
        self._random = random.Random(workload.seed)
        self._extras: dict[str, Any] = {"ignore_eos": True}
        self._words = workload.prompt_tokens

    async def prepare(self) -> None:
        """Find the number of words of a prompt, and whether the endpoint takes `ignore_eos`."""
        async with self._endpoint.open_async(1) as client:
            try:
                await self._length(client, 1)
            except EndpointError as error:
                if error.status not in (400, 422):
                    raise
                self._extras = {}
            few, many = [await self._length(client, count) for count in PROBE_WORDS]
        per_word = max(many - few, 1) / (PROBE_WORDS[1] - PROBE_WORDS[0])
        self._words = max(round((self._work.prompt_tokens - few) / per_word) + PROBE_WORDS[0], 1)

    async def run(self, concurrency: int) -> Level:
        """One level: as many clients as `concurrency`."""
        answers: list[Answer] = []
        left = iter(range(self._work.requests))
        begin = time.monotonic()
        async with self._endpoint.open_async(concurrency) as client, asyncio.TaskGroup() as clients:
            for _ in range(min(concurrency, self._work.requests)):
                clients.create_task(self._client(client, left, begin + self._work.seconds, answers))
        return Level(concurrency, time.monotonic() - begin, answers)

    async def _client(
        self, client: httpx.AsyncClient, left: Iterator[int], until: float, answers: list[Answer]
    ) -> None:
        for _ in left:
            if time.monotonic() >= until:
                return
            answers.append(await self._ask(client, self._prompt(self._words), self._work.output_tokens))

    async def _ask(self, client: httpx.AsyncClient, prompt: str, output_tokens: int) -> Answer:
        answer = Answer(time.monotonic())
        body = {"model": self._work.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        try:
            request = self._endpoint.chat_async(client, {**body, "max_tokens": output_tokens, **self._extras})
            async with aclosing(request) as chunks:
                async for chunk in chunks:
                    if any(text_of(chunk)):
                        answer.pieces.append(time.monotonic())
                    if usage := chunk.get("usage"):
                        answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        except EndpointError as error:
            answer.error = str(error)
        answer.ended = time.monotonic()
        answer.output_tokens = answer.output_tokens or len(answer.pieces)
        return answer

    async def _length(self, client: httpx.AsyncClient, words: int) -> int:
        """Tokens of a prompt of so many words, as the endpoint counts them; the words where it does not say."""
        body = {"model": self._work.model, "max_tokens": 1, **self._extras}
        tokens = words
        messages = [{"role": "user", "content": self._prompt(words)}]
        async with aclosing(self._endpoint.chat_async(client, {**body, "messages": messages})) as chunks:
            async for chunk in chunks:
                tokens = (chunk.get("usage") or {}).get("prompt_tokens", tokens)
        return tokens

    def _prompt(self, words: int) -> str:
        return " ".join(self._random.choices(WORDS, k=words))
