"""How the next token of a sequence is to be chosen, and what is told about the chosen one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

GREEDY_BELOW = 1e-5
"""Temperatures that float32 cannot divide logits by for certain: a draw is then the likeliest token anyway."""

REPETITION_PENALTIES = (0.01, 100.0)


class TokenMask(Protocol):
    """A grammar's say in what may come next. A pure function: drafts are tried on it that may never be accepted."""

    def __call__(self, generated: Sequence[int], /) -> NDArray[np.bool_] | None:
        """Which ids [V] may follow the tokens generated so far; None for all of them.

        Ids beyond the array's end may not. Where nothing may come, the end may. What it raises ends the one sequence.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when generation ends.

    A temperature below `GREEDY_BELOW` is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch the filter off. `logit_bias`
    is added to the logits of its ids. `logprobs` is the number of alternatives reported beside the chosen token, None
    for no log-probabilities at all. With a `seed`, equal requests give equal tokens whatever else is in the batch.
    Raises ValueError for what a sampler cannot compute with.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    mask: TokenMask | None = None
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        least, most = REPETITION_PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise ValueError(f"repetition_penalty must be {least:g} to {most:g}, not {self.repetition_penalty:g}")
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, not {value}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without a draw."""
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Whether the logits depend on the tokens seen so far."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def filtered(self) -> bool:
        """Whether unlikely tokens are left out of a draw."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def stops(self, token: int, count: int) -> bool:
        """Whether `token` as the `count`-th generated one says that the answer is complete."""
        return token in self.stop_token_ids and count > self.min_tokens

    def ends(self, token: int, count: int) -> bool:
        """Whether nothing comes after `token` as the `count`-th generated one."""
        return count >= self.max_tokens or self.stops(token, count)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; with log-probabilities (natural logarithm) where the request wants them."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class NumericsError(RuntimeError):
    """The model computed something that is not a number."""
