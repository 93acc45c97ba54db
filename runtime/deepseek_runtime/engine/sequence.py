"""One sequence being generated: what was asked, what is computed, how it ended. Knows token ids only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from deepseek_runtime.engine.sampling import SamplingParams


class FinishReason(StrEnum):
    """Why a sequence ended, in the words of the OpenAI API plus `abort` for those nobody waits for any more."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


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
