"""The same answers without HTTP: a model in this process, for the command line."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepseek_runtime.engine.engine import Broken, Engine, Event, Request
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.server.generation import Choice, Job
from deepseek_runtime.settings import Settings
from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer


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
        prompt = tuple(self.template.encode(messages))
        room = self.max_model_len - len(prompt)
        if room <= 0:
            raise ValueError(f"the conversation has {len(prompt)} tokens, the model takes up to {self.max_model_len}")
        params = SamplingParams(
            max_tokens=min(max_tokens or room, room),
            temperature=temperature,
            seed=secrets.randbits(62),
            stop_token_ids=self.tokenizer.stop_ids,
        )
        yield from self._pieces(prompt, params)

    def _pieces(self, prompt: tuple[int, ...], params: SamplingParams) -> Iterator[str]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        choice = Choice(0, self.tokenizer, Job(prompts=(prompt,), params=params))
        ids = self.engine.submit([Request(prompt, params, events.put)])
        try:
            while not choice.finished:
                event = events.get()
                if isinstance(event, Broken):
                    raise RuntimeError(event.message)
                if piece := choice.push(event):
                    yield piece.text
        finally:
            self.engine.cancel(ids)
