"""How the next token of a sequence is to be chosen, and what is told about the chosen one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when generation ends.

    Temperature 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch the filter off. `logprobs` is the number of
    alternatives reported beside the chosen token, None for no log-probabilities at all. With a `seed`, equal requests
    give equal tokens whatever else is in the batch.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    logprobs: int | None = None

    @property
    def penalised(self) -> bool:
        """Whether the logits depend on the tokens seen so far."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; with log-probabilities (natural logarithm) where the request wants them."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
