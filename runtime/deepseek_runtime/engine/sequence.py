"""One sequence being generated: what was asked, what is computed, how it ended. Knows token ids only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a sequence ended, in the words of the OpenAI API plus `abort` for those nobody waits for any more."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


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


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and the tokens generated behind it, with the cache blocks that hold the first `computed` of them."""

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    generated: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    finish_reason: FinishReason | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def remaining(self) -> int:
        """Tokens whose latents are not in the cache yet: 1 while decoding, more while a prompt is being read."""
        return len(self) - self.computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions [start, stop), without copying the whole sequence."""
        split = len(self.prompt)
        head = self.prompt[start : min(stop, split)] if start < split else ()
        return [*head, *self.generated[max(start - split, 0) : max(stop - split, 0)]]

    def append(self, token: int) -> FinishReason | None:
        """Add a generated token and say whether it was the last one."""
        self.generated.append(token)
        if token in self.params.stop_token_ids and len(self.generated) > self.params.min_tokens:
            self.finish_reason = FinishReason.STOP
        elif len(self.generated) >= self.params.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        return self.finish_reason
