"""The same answers without HTTP: a model in this process, for the command line."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepseek_runtime.engine.engine import Broken, Engine, Event, Failed
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.server.generation import Choice, Job, Piece
from deepseek_runtime.settings import Settings
from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer


class BrokenGroupError(RuntimeError):
    """The group can no longer compute; whoever noticed has been told already."""


def open_local(settings: Settings, report: Callable[[float], None]) -> Local:
    """Load a checkpoint into this process; `report` gets the share that is loaded, 0 to 1."""
    from deepseek_runtime.dist.group import Group
    from deepseek_runtime.dist.init import choose_device
    from deepseek_runtime.engine.build import load_rank, make_engine

    tokenizer = Tokenizer(settings.model)
    template = ChatTemplate(settings.model, tokenizer)
    group = Group(choose_device(settings.device, 0))
    loaded = load_rank(settings, group, report)
    engine = make_engine(settings, loaded, group.device, on_failure=lambda _: None)
    engine.start()
    return Local(engine=engine, tokenizer=tokenizer, template=template, max_model_len=loaded.limits.max_model_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """An engine with its text side."""

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    max_model_len: int

    def answer(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int | None = None, temperature: float = 0.0
    ) -> Iterator[str]:
        """The assistant's answer to a conversation, in pieces; ValueError for one that is too long."""
        job = self.job(messages, max_tokens=max_tokens, temperature=temperature)
        for piece in self.run([job]):
            yield piece.text

    def job(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int | None = None, temperature: float = 0.0
    ) -> Job:
        """What `run` takes for a conversation; ValueError for one that is too long."""
        prompt = tuple(self.template.encode(messages).ids)
        room = self.max_model_len - len(prompt)
        if room <= 0:
            raise ValueError(f"the conversation has {len(prompt)} tokens, the model takes up to {self.max_model_len}")
        params = SamplingParams(
            max_tokens=min(max_tokens or room, room),
            temperature=temperature,
            seed=secrets.randbits(62),
            stop_token_ids=self.tokenizer.stop_ids,
        )
        return Job(prompts=(prompt,), params=params)

    def run(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        """Answer all jobs, of one prompt each, together: pieces as they come, `choice` is the job's number."""
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        choices = [Choice(number, self.tokenizer, job) for number, job in enumerate(jobs)]
        ids = self.engine.submit([job.request(0, _sink(number, events)) for number, job in enumerate(jobs)])
        try:
            while not all(choice.finished for choice in choices):
                number, event = events.get()
                if isinstance(event, Broken):
                    raise BrokenGroupError(event.message)
                if isinstance(event, Failed):
                    raise ValueError(event.message)
                if piece := choices[number].take([event]):
                    yield piece
        finally:
            self.engine.cancel(ids)


def _sink(number: int, events: queue.SimpleQueue[tuple[int, Event]]) -> Callable[[Event], None]:
    return lambda event: events.put((number, event))
