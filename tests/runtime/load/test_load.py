"""Sixty-four clients on two ranks: whatever they do and whatever happens, answers are whole or errors clean.

`DSV3_LOAD_SECONDS=60` makes the first phase longer; `--log-cli-level=INFO` shows what came of all requests.
"""

import asyncio
import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from crowd import Crowd, Seen, random_plan
from deepseek_runtime.settings import checkpoint_folder
from group_process import GroupProcess

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("DSV3_LOAD_SECONDS", "15"))
CLIENTS = 64
LIMITS = {"max-model-len": 512, "kv-tokens": 768, "block-size": 16, "max-running": 32, "max-queued": 40}
FLAGS = [text for name, value in LIMITS.items() for text in (f"--{name}", str(value))]
WHOLE_BEFORE_THE_DEATH = 40
COUNTED = ("dsv3_requests_", "dsv3_generation_tokens", "dsv3_prompt_tokens", "dsv3_cache_usage", "dsv3_preemptions")
FINISHED, REJECTED = "dsv3_requests_finished_total", "dsv3_requests_rejected_total"


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GroupProcess]:
    group = GroupProcess(tmp_path_factory.mktemp("load"), checkpoint_folder("tutor"), *FLAGS)
    yield group
    group.stop()


def crowd_on(group: GroupProcess, name: str, more: Callable[[], bool], on_seen: Callable[[Seen], None]) -> Crowd:
    """All clients after their last request; each asks while `more` says so."""
    crowd = Crowd(group.url, group.serves, on_seen)

    async def ask() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(crowd.client(f"{name}-{number}", more))

    asyncio.run(ask())
    return crowd


def wait_idle(group: GroupProcess) -> dict[str, float]:
    """The metrics once nothing is asked, runs or waits."""
    names = ("dsv3_requests_in_flight", "dsv3_requests_running", "dsv3_requests_waiting")
    deadline = monotonic() + 20
    while any((metrics := group.metrics())[name] for name in names):
        assert monotonic() < deadline, {name: metrics[name] for name in names}
        sleep(0.02)
    return metrics


def labelled(metrics: dict[str, float], name: str, label: str) -> dict[str, float]:
    """The samples of a counter that are not zero, by their label."""
    start, end = f'{name}{{{label}="', '"}'
    return {key[len(start) : -len(end)]: value for key, value in metrics.items() if key.startswith(start) and value}


def disagreement(seen: Seen, line: dict[str, Any] | None) -> str | None:
    """How the server's account of a request differs from its client's."""
    if line is None:
        return None if seen.outcome == "left" else f"{seen}: not in the access log"
    status, cause, reasons = line["status"], line.get("cause"), line.get("finish_reasons", [])
    if seen.outcome == "whole":
        agrees = status == 200 and cause is None and sorted(reasons) == sorted(seen.reasons.values())
    elif seen.outcome == "refused":
        agrees = status == 429 and f"429 {cause}" == seen.note
    else:
        unknown = Counter(seen.reasons.values()) - Counter(reasons)
        agrees = cause in (None, "client_disconnect", "queue_full") and not unknown
    return None if agrees else f"{seen}: the access log says {line}"


def check_counters(metrics: dict[str, float], lines: list[dict[str, Any]]) -> None:
    """Every counter is the sum of what the access log says of single requests."""
    reasons = Counter(reason for line in lines for reason in line.get("finish_reasons", ()))
    assert labelled(metrics, FINISHED, "finished_reason") == reasons
    assert labelled(metrics, REJECTED, "code") == Counter(line["cause"] for line in lines if line["status"] == 429)
    assert metrics["dsv3_generation_tokens_total"] == sum(line.get("completion_tokens", 0) for line in lines)
    assert metrics["dsv3_prompt_tokens_total"] == sum(line.get("prompt_tokens", 0) for line in lines)


def summary(seen: list[Seen]) -> str:
    return f"{len(seen)} requests: {dict(Counter(one.outcome for one in seen))}"


def odd(seen: list[Seen], *fine: str) -> list[str]:
    """What no client should have seen."""
    return [str(one) for one in seen if one.outcome not in fine]


def test_a_crowd_that_comes_and_goes_leaves_nothing_behind_and_all_is_accounted_for(group: GroupProcess) -> None:
    before, until = wait_idle(group), monotonic() + SECONDS
    seen = crowd_on(group, "crowd", lambda: monotonic() < until, lambda _: None).seen
    after, lines = wait_idle(group), {line["id"]: line for line in group.access_log()}
    logger.info("%s; %s", summary(seen), {name: value for name, value in after.items() if name.startswith(COUNTED)})
    assert odd(seen, "whole", "left", "refused") == [], summary(seen)
    assert {one.outcome for one in seen} == {"whole", "left", "refused"}, "the load was too light to prove anything"
    assert after["dsv3_cache_usage"] == before["dsv3_cache_usage"]
    check_counters(after, [*lines.values()])
    assert [*filter(None, (disagreement(one, lines.pop(one.plan.id, None)) for one in seen))] == [], summary(seen)
    assert not lines, "the server knows of requests that nobody made"


def test_when_a_rank_dies_every_client_is_told_and_the_restarted_group_answers(group: GroupProcess) -> None:
    whole, killed_at = 0, 0.0

    def kill_in_the_middle(seen: Seen) -> None:
        nonlocal whole, killed_at
        whole += seen.outcome == "whole"
        if whole == WHOLE_BEFORE_THE_DEATH and not killed_at:
            os.kill(group.rank_pids[1], signal.SIGKILL)
            killed_at = monotonic()

    crowd = crowd_on(group, "mourners", lambda: True, kill_in_the_middle)
    seen = crowd.seen
    logger.info("%s; from the closed port to the end %.2f s", summary(seen), crowd.parting)
    assert odd(seen, "whole", "left", "refused", "error", "error event", "unread", "gone") == [], summary(seen)
    known = {line["id"] for line in group.access_log()}
    unread = [one for one in seen if one.outcome == "unread"]
    assert [str(one) for one in unread if one.sent < killed_at or one.plan.id in known] == [], (
        "it was the server's to say"
    )
    assert "error" in "".join(one.outcome for one in seen), f"nobody was there to be told: {summary(seen)}"
    assert group.process.wait(60) != 0
    assert "rank 1 is lost" in group.errors()
    group.start()
    plan = random_plan(random.Random(0), "after")
    answer = httpx.post(f"{group.url}{plan.path}", json={**plan.body, "stream": False}, timeout=60)
    assert answer.status_code == 200, answer.text
