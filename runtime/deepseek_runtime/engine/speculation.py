"""How well drafts are doing: figures that tell a wrongly wired or badly trained MTP layer, as nothing else would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from deepseek_runtime.engine.sampling import Sampled


@dataclass(slots=True)
class Speculation:
    """How drafts fared since the start, by position: how many were verified, and how many of them held.

    `forwards` counts the sequences of all steps that sampled, `tokens` what became certain by them.
    """

    drafted: Counter[int] = field(default_factory=Counter)
    accepted: Counter[int] = field(default_factory=Counter)
    forwards: int = 0
    tokens: int = 0

    def count(self, drafts: Rows[int], sampled: Rows[Sampled]) -> None:
        """Note what became of one sequence's drafts."""
        self.forwards += 1
        self.tokens += len(sampled)
        self.drafted.update(range(len(drafts)))
        self.accepted.update(range(agreement([token.token for token in sampled], drafts)))


def agreement(tokens: Rows[int], drafts: Rows[int]) -> int:
    """Drafts before the first one that differs from its token."""
    pairs = enumerate(zip(tokens, drafts, strict=False))
    return next((i for i, (token, draft) in pairs if token != draft), min(len(tokens), len(drafts)))
