"""One sequence being generated: what was asked, what is computed, how it ended. Knows token ids only."""

from __future__ import annotations

from collections.abc import Iterable
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
    """A prompt and the tokens generated behind it, with the cache blocks that hold the first `computed` of them.

    Ids grow in the order of arrival. `priority` is as in vLLM: lower numbers run earlier. `cached` is how many tokens
    of the prompt the prefix cache held when the sequence was first admitted, `rank` the data-parallel rank whose pool
    its blocks are of. Entries of `blocks` may change at a commit: where another block holds the same, it is shared.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    generated: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    finish_reason: FinishReason | None = None
    drafts: list[int] = field(default_factory=list)
    """Guesses for the tokens behind the last certain one. Set after a step, gone with the next commit."""
    priority: int = 0
    cached: int = 0
    rank: int = 0
    preemptions: int = 0
    admitted_at: float | None = None
    """When the first step with a part of it began, in seconds of the monotonic clock."""
    fault: Exception | None = None
    """Why this sequence alone cannot go on: what its request's grammar raised where the next token was to be chosen."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def remaining(self) -> int:
        """Tokens whose latents are not in the cache yet: 1 while decoding, more while a prompt is being read."""
        return len(self) - self.computed

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions [start, stop), drafts behind the certain ones, without copying the whole sequence."""
        result: list[int] = []
        for part in (self.prompt, self.generated, self.drafts):
            result += part[start : max(stop, 0)]
            start, stop = max(start - len(part), 0), stop - len(part)
        return result

    def append(self, token: int) -> FinishReason | None:
        """Add a generated token and say whether it was the last one."""
        self.generated.append(token)
        if self.params.stops(token, len(self.generated)):
            self.finish_reason = FinishReason.STOP
        elif len(self.generated) >= self.params.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        return self.finish_reason

    def extend(self, tokens: Iterable[int]) -> int:
        """Add generated tokens up to the one that is the last; how many were added."""
        before = len(self.generated)
        for token in tokens:
            if self.append(token) is not None:
                break
        return len(self.generated) - before
