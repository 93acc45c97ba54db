"""Every rank's half of a step: plan → logits; on rank 0 also → tokens; with speculation also → drafts.

Rank 0 leads: it broadcasts each plan before it runs it. The others follow: they block in the broadcast, without using
the processor, until the next plan or sign of life comes. With speculation each step has a second half: rank 0 tells
which tokens became certain, and every rank runs the MTP layer over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from typing import Protocol

from torch import Tensor

from deepseek_runtime.engine.sampler import likeliest
from deepseek_runtime.engine.sampling import Sampled
from deepseek_runtime.engine.scheduler import Slot
from deepseek_runtime.engine.speculation import Speculation
from deepseek_runtime.engine.step import Operation, Outcome, SequenceOutcome, SequencePlan, StepPlan
from deepseek_runtime.engine.verify import verify


class Channel(Protocol):
    """What the runner needs of a `dist.Group`."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def broadcast_ints(self, values: list[int] | None) -> list[int]:
        """Rank 0 gives the list, every rank gets it."""
        ...


class Executor(Protocol):
    """Runs this rank's part of the model. Logits are rank 0's alone; what the others return means nothing."""

    @property
    def block_size(self) -> int:
        """Tokens of a cache block."""
        ...

    def run(self, plan: StepPlan) -> Tensor:
        """Write the plan's tokens to the cache; logits [N, V] float32 of the positions it wants."""
        ...

    def draft(self, outcome: Outcome) -> Tensor:
        """Run the MTP layer over the tokens of the last plan that stay; logits [N, V] of sequences that draft."""
        ...

    def extend(self, tokens: Rows[int]) -> Tensor:
        """One draft further: `tokens` [N] were chosen from the last drafting's logits; logits of those that go on."""
        ...

    def rebalance(self) -> float | None:
        """Even out the work of the ranks, between two steps; that of the busiest over the mean until now, if known."""
        ...


class Runner:
    """Runs steps on this rank. `vocab_size` is the tokenizer's: ids beyond it are padding and never chosen."""

    def __init__(self, executor: Executor, channel: Channel, *, vocab_size: int, speculative_tokens: int = 0) -> None:
        self.speculation = Speculation.of(speculative_tokens)
        self._executor = executor
        self._channel = channel
        self._vocab_size = vocab_size
        self._depth = speculative_tokens
        self._plan = StepPlan()

    def lead(self, slots: Rows[Slot]) -> dict[int, list[Sampled]]:
        """Run one step on every rank; the next tokens of each sequence that reached its end, by sequence id."""
        self._plan = StepPlan(sequences=tuple(map(_plan_slot, slots)))
        self._send(self._plan)
        logits = self._executor.run(self._plan)
        trials = [(slot.sequence, slot.sequence.drafts[: slot.drafts]) for slot in slots if slot.samples]
        if not trials:
            return {}
        sampled = verify(logits[:, : self._vocab_size], trials)
        for (_, drafts), tokens in zip(trials, sampled, strict=True):
            self.speculation.count(drafts, tokens)
        return {sequence.id: tokens for (sequence, _), tokens in zip(trials, sampled, strict=True)}

    def draft(self, slots: Rows[Slot], sampled: Mapping[int, Rows[Sampled]]) -> None:
        """Draft behind the sequences of the last step that go on; to be called when the step was committed.

        The MTP layer sees every token of the step that stays, so that its cache is complete for prompts too.
        """
        if not self._depth:
            return
        parts = [
            self._outcome(slot, part, sampled.get(slot.sequence.id))
            for slot, part in zip(slots, self._plan.sequences, strict=True)
        ]
        outcome = Outcome(tuple(parts))
        if self._channel.world_size > 1:
            self._channel.broadcast_ints(outcome.encode())
        for slot, drafts in zip(slots, self._speculate(outcome), strict=True):
            slot.sequence.drafts = drafts

    def rebalance(self) -> float | None:
        """Have all ranks even out their work; that of the busiest over the mean until now, if known."""
        self.announce(Operation.REBALANCE)
        return self._executor.rebalance()

    def announce(self, operation: Operation) -> None:
        """Tell the other ranks something that needs no computation."""
        self._send(StepPlan(operation))

    def follow(self, on_message: Callable[[Operation], None]) -> None:
        """Run what rank 0 sends until it says stop. `on_message` is called after each message was obeyed."""
        operation = Operation.STEP
        while operation is not Operation.STOP:
            plan = StepPlan.decode(self._channel.broadcast_ints(None))
            operation = plan.operation
            if operation is Operation.REBALANCE:
                self._executor.rebalance()
            if plan.sequences:
                self._executor.run(plan)
                if self._depth:
                    self._speculate(Outcome.decode(self._channel.broadcast_ints(None)))
            on_message(operation)

    def _speculate(self, outcome: Outcome) -> list[list[int]]:
        """The drafts of each sequence of the plan, on rank 0; every rank computes them alike."""
        drafts: list[list[int]] = [[] for _ in outcome.sequences]
        logits = self._executor.draft(outcome)
        for depth in range(1, outcome.depth + 1):
            tokens = self._draft_tokens(logits, shared=depth < outcome.depth)
            drafting = (own for own, part in zip(drafts, outcome.sequences, strict=True) if part.drafts >= depth)
            for own, token in zip(drafting, tokens, strict=False):
                own.append(token)
            if depth < outcome.depth:
                logits = self._executor.extend(tokens)
        return drafts

    def _draft_tokens(self, logits: Tensor, *, shared: bool) -> list[int]:
        """The likeliest token of each row; the other ranks know them only where they are shared."""
        tokens: list[int] = []
        if self._channel.rank == 0:
            tokens = likeliest(logits[:, : self._vocab_size]).tolist()
        if shared and self._channel.world_size > 1:
            return self._channel.broadcast_ints(tokens if self._channel.rank == 0 else None)
        return tokens

    def _outcome(self, slot: Slot, part: SequencePlan, sampled: Rows[Sampled] | None) -> SequenceOutcome:
        sequence = slot.sequence
        if not sampled:
            return SequenceOutcome(slot.length, sequence.tokens(part.stop, part.stop + 1)[0], 0)
        kept = slot.length - slot.drafts + len(sampled) - 1
        drafts = 0
        if sequence.finish_reason is None:
            wanted = sequence.params.max_tokens - len(sequence.generated) - 1
            room = len(part.block_table) * self._executor.block_size - len(sequence) + 2
            drafts = min(self._depth, wanted, room)
        return SequenceOutcome(kept, sampled[-1].token, drafts)

    def _send(self, plan: StepPlan) -> None:
        if self._channel.world_size > 1:
            self._channel.broadcast_ints(plan.encode())


def _plan_slot(slot: Slot) -> SequencePlan:
    sequence = slot.sequence
    tokens = sequence.tokens(slot.start, slot.start + slot.length)
    logits = 1 + slot.drafts if slot.samples else 0
    return SequencePlan(slot.start, tuple(tokens), tuple(sequence.blocks), logits, sequence.rank)
