"""Random requests to the tutor, the same in every process that names the seed, and how an engine answers them.

Lengths, seeds, temperatures, penalties, stop tokens and repetitions (`n`) vary; some are cancelled on the way.
"""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from deepseek_runtime.engine.engine import Engine, Event, Request, Token
from deepseek_runtime.engine.sampling import SamplingParams
from tutor_training.evaluate import prompt
from tutor_training.problems import random_problem

TUTOR = Path(__file__).resolve().parents[2] / "runtime/deepseek_runtime/tutor"
PATIENCE = 240.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `cancel_after` is how many tokens its client waits for before it leaves, None for all."""

    prompt: tuple[int, ...]
    params: SamplingParams
    n: int
    priority: int
    cancel_after: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of one choice, and how it ended: None for one that was cancelled."""

    tokens: list[int]
    finish_reason: str | None


def random_asks(count: int, seed: int) -> Iterator[Ask]:
    """`count` requests that depend on nothing but the seed."""
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(TUTOR / "tokenizer.json"))
    for _ in range(count):
        questions = (random_problem(rng, held_out=False).question for _ in range(rng.choice([1, 1, 1, 2, 5])))
        yield Ask(
            prompt=tuple(chain.from_iterable(prompt(tokenizer, question) for question in questions)),
            params=_params(rng, vocabulary=tokenizer.get_vocab_size()),
            n=rng.choice([1, 1, 1, 1, 2, 3]),
            priority=rng.choice([0, 0, 0, -1, 1]),
            cancel_after=rng.randint(1, 12) if rng.random() < 0.15 else None,
        )


def _params(rng: random.Random, vocabulary: int) -> SamplingParams:
    greedy = SamplingParams(
        max_tokens=rng.randint(1, 24),
        temperature=0,
        seed=rng.randrange(2**31),
        stop_token_ids=frozenset({1, *rng.choices(range(vocabulary), k=rng.choice([0, 0, 3]))}),
    )
    match rng.randrange(5):
        case 0:
            return replace(greedy, temperature=rng.uniform(0.3, 1.2), top_p=rng.choice([1.0, 0.9]))
        case 1:
            return replace(greedy, temperature=0.8, top_k=rng.randint(1, 20), min_p=0.02)
        case 2:
            return replace(greedy, frequency_penalty=0.5, repetition_penalty=1.1)
        case _:
            return greedy


def ask_all(engine: Engine, asks: list[Ask], at_once: int) -> list[list[Answer]]:
    """Send requests, at most `at_once` at a time; the answers, one for each of a request's `n` choices."""
    with ThreadPoolExecutor(at_once) as clients:
        return list(clients.map(partial(ask_one, engine), asks))


def ask_one(engine: Engine, ask: Ask) -> list[Answer]:
    """Wait for the whole answer, or leave where the request says so."""
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    seeded = [replace(ask.params, seed=ask.params.seed + choice) for choice in range(ask.n)]
    ids = engine.submit(
        [
            Request(ask.prompt, params, partial(_put, events, choice), ask.priority)
            for choice, params in enumerate(seeded)
        ]
    )
    tokens: list[list[int]] = [[] for _ in ids]
    reasons: list[str | None] = [None for _ in ids]
    while None in reasons and sum(map(len, tokens)) != ask.cancel_after:
        choice, event = events.get(timeout=PATIENCE)
        if not isinstance(event, Token):
            raise AssertionError(event.message)
        tokens[choice].append(event.sampled.token)
        reasons[choice] = event.finish_reason
    engine.cancel(ids)
    return [Answer(*pair) for pair in zip(tokens, reasons, strict=True)]


def _put(events: queue.SimpleQueue[tuple[int, Event]], choice: int, event: Event) -> None:
    events.put((choice, event))
