"""Clients that come and go in every way leave nothing behind."""

import asyncio
import random
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

CLIENTS = 24
REQUESTS = 8


@pytest.fixture
def server(make_server: Callable[..., Any]) -> Any:
    server = make_server(max_running=8, max_queued=200)
    server.open()
    return server


async def come_and_go(url: str, seed: int) -> list[str]:
    """One client's requests, some left alone before their end; what came of each."""
    dice, results = random.Random(seed), []
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for _ in range(REQUESTS):
            body = {"model": "echo", "messages": [{"role": "user", "content": "abc" * dice.randint(1, 30)}]}
            body |= {"temperature": 0, "n": dice.randint(1, 3), "stream": dice.random() < 0.5}
            patience = dice.choice([0.01, 0.05, 60.0])
            try:
                async with asyncio.timeout(patience):
                    response = await client.post("/v1/chat/completions", json=body)
                    results.append("whole" if response.status_code == 200 else response.text)
            except TimeoutError:
                results.append("left")
    return results


def test_a_crowd_of_impatient_clients_leaves_an_empty_server(server: Any) -> None:
    async def crowd() -> list[list[str]]:
        return await asyncio.gather(*(come_and_go(server.url, seed) for seed in range(CLIENTS)))

    results = [result for one in asyncio.run(crowd()) for result in one]
    assert set(results) == {"whole", "left"}
    deadline = monotonic() + 10
    while (stats := server.engine.stats()) and (stats.running or stats.waiting or stats.cache_usage):
        assert monotonic() < deadline, stats
        sleep(0.01)
    answer = server.client.post(
        "/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "abc"}]}
    )
    assert answer.json()["choices"][0]["message"]["content"] == "abc"
