"""What one request adds to the metrics and to its line in the access log.

It is told of tokens when a client can see them: several that come together are one observation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_runtime.server import access_log
from deepseek_runtime.server.metrics import Metrics

COMPLETE = frozenset({"stop", "length", "tool_calls"})
"""Reasons of answers that ended as they should; any other is the cause of an abort."""


@dataclass(slots=True)
class _Times:
    """Of one choice, in seconds of the monotonic clock."""

    admitted: float | None = None
    first: float | None = None
    last: float = 0.0
    tokens: int = 0


class Recorder:
    """One request with the lengths of its prompts, `n` choices for each, and the bound on each choice's tokens."""

    def __init__(self, metrics: Metrics, arrived: float, prompts: Sequence[int], n: int, max_tokens: int) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._prompts = prompts
        self._n = n
        self._choices = [_Times() for _ in range(len(prompts) * n)]
        self._record = access_log.current()
        self._record.prompt_tokens += sum(prompts)
        metrics.prompt_tokens.add(sum(prompts))
        metrics.choices.add(n)
        metrics.max_tokens.add(max_tokens)

    def tokens(self, choice: int, count: int, admitted_at: float | None = None) -> None:
        """New tokens of a choice, whose first step began at `admitted_at`, have come together."""
        now, times, metrics = time.monotonic(), self._choices[choice], self._metrics
        if times.first is None:
            times.first, times.admitted = now, admitted_at
            metrics.first_token.add(now - self._arrived)
            if self._record.first_token is None:
                self._record.first_token = self._record.age
        else:
            metrics.next_token.add(now - times.last)
        times.last = now
        times.tokens += count
        metrics.generated_tokens.add(count)
        self._record.completion_tokens += count

    def finish(self, choice: int, reason: str) -> None:
        """A choice has ended."""
        times, metrics = self._choices[choice], self._metrics
        metrics.finished.add(1, str(reason))
        metrics.latency.add(time.monotonic() - self._arrived)
        metrics.request_prompt_tokens.add(self._prompts[choice // self._n])
        metrics.request_generated_tokens.add(times.tokens)
        self._observe_stages(times)
        self._record.finish_reasons.append(str(reason))
        if reason not in COMPLETE:
            self._record.cause = self._record.cause or str(reason)

    def _observe_stages(self, times: _Times) -> None:
        if times.admitted is None or times.first is None:
            return
        metrics = self._metrics
        metrics.queue.add(times.admitted - self._arrived)
        metrics.prefill.add(times.first - times.admitted)
        metrics.decode.add(times.last - times.first)
        metrics.inference.add(times.last - times.admitted)
