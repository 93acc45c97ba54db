"""How well drafts are doing: figures that tell a wrongly wired or badly trained MTP layer, as nothing else would."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

from deepseek_runtime.engine.sampling import Sampled


@dataclass(slots=True)
class Speculation:
    """Counts since the start: by position, drafts that were verified and those that held.

    `forwards` counts the sequences of all steps that sampled, `tokens` what became certain by them.
    """

    drafted: list[int]
    accepted: list[int]
    forwards: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, tokens: int) -> Speculation:
        """Nothing counted yet, where up to `tokens` are drafted at once."""
        return cls([0] * tokens, [0] * tokens)

    def snapshot(self) -> Speculation:
        """A copy that stays as it is."""
        return replace(self, drafted=self.drafted.copy(), accepted=self.accepted.copy())

    def count(self, drafts: Rows[int], sampled: Rows[Sampled]) -> None:
        """Note what became of one sequence's drafts."""
        self.forwards += 1
        self.tokens += len(sampled)
        for position in range(len(drafts)):
            self.drafted[position] += 1
        for position in range(agreement([token.token for token in sampled], drafts)):
            self.accepted[position] += 1


def agreement(tokens: Rows[int], drafts: Rows[int]) -> int:
    """Drafts before the first one that differs from its token."""
    pairs = enumerate(zip(tokens, drafts, strict=False))
    return next((i for i, (token, draft) in pairs if token != draft), min(len(tokens), len(drafts)))
