"""What rank 0 does instead of serving: it asks its own engine, and writes the answers to standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from deepseek_runtime.engine.engine import Engine, RefusedError
from deepseek_runtime.engine.process import End, Ending, Role
from deepseek_runtime.health import Health, Phase
from deepseek_runtime.offline.order import Order, Question
from deepseek_runtime.server.generation import Job, Piece
from deepseek_runtime.server.local import BrokenGroupError, Local

STOP_SECONDS = 10.0
HELP = "/clear forgets what was said, /exit or Ctrl-D ends"
Message = dict[str, str]


class Session(Role):
    """Runs `work` once the engine is up."""

    def __init__(self, health: Health, end: End, engine: Engine, work: Callable[[], None]) -> None:
        super().__init__(health, end)
        self._engine = engine
        self._work = work

    def run(self) -> None:
        self._engine.start()
        self._health.enter(Phase.READY)
        ending = Ending(0)
        try:
            self._work()
        except (ValueError, RefusedError) as error:
            ending = Ending(2, str(error))
        except BrokenGroupError:
            return  # whoever noticed ends this rank, and says why
        except BrokenPipeError:  # whoever read the answers has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._stop(ending)

    def drain(self) -> None:
        """Let the other ranks go, whatever was still to be said."""
        self._stop(Ending(0))

    def give_up(self, message: str) -> None:
        self._engine.fail(message)

    def _stop(self, ending: Ending) -> None:
        stopped = self._engine.stop(STOP_SECONDS)
        self._end(ending if stopped else Ending(1, f"a step did not end within {STOP_SECONDS:g} s"))


def work_of(order: Order, local: Local) -> Callable[[], None]:
    """What an order wants done with a model."""
    if order.questions is None:
        return lambda: _Talk(order, local).run()
    questions = order.questions
    return lambda: _answer_all(order, questions, local)


def _answer_all(order: Order, questions: Sequence[Question], local: Local) -> None:
    """Answer all questions in one batch; ValueError, before any is answered, for one that is too long."""
    jobs = []
    for question in questions:
        try:
            jobs.append(_job(order, local, [_user(question.text)]))
        except ValueError as error:
            raise ValueError(f"{question.origin}: {error}" if question.origin else str(error)) from error
    answers = _InOrder([_title(question) for question in questions])
    for piece in local.run(jobs):
        answers.add(piece)


def _title(question: Question) -> str:
    return f"Prompt: {question.text}\nCompletion: " if question.origin else ""


class _InOrder:
    """Writes answers one below the other although they come together: the first that is not complete streams."""

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = titles
        self._pending = [""] * len(titles)
        self._ended = [False] * len(titles)
        self._current = 0
        _write(titles[0])

    def add(self, piece: Piece) -> None:
        """Take the next piece of any answer."""
        self._pending[piece.choice] += piece.text
        self._ended[piece.choice] = piece.finish_reason is not None
        while self._current < len(self._titles) and self._flush():
            self._current += 1
            _write("\n")
            if self._current < len(self._titles):
                _write(self._titles[self._current])

    def _flush(self) -> bool:
        """Write what there is of the current answer; whether that was all of it."""
        _write(self._pending[self._current])
        self._pending[self._current] = ""
        return self._ended[self._current]


class _Talk:
    """A conversation of several turns."""

    def __init__(self, order: Order, local: Local) -> None:
        self._order = order
        self._local = local
        self._messages: list[Message] = []

    def run(self) -> None:
        """Answer until the person has enough."""
        _write(f"{HELP}\n")
        for said in iter(_ask, "/exit"):
            if said == "/clear":
                self._messages.clear()
                _write("what was said is forgotten\n")
            elif said:
                self._turn(said)

    def _turn(self, said: str) -> None:
        messages = [*self._messages, _user(said)]
        try:
            job = _job(self._order, self._local, messages)
        except ValueError as error:
            _write(f"{error}; /clear makes room\n")
            return
        answer = ""
        for piece in self._local.run([job]):
            answer += piece.text
            _write(piece.text)
        _write("\n")
        self._messages = [*messages, {"role": "assistant", "content": answer}]


def _job(order: Order, local: Local, messages: Sequence[Message]) -> Job:
    return local.job(messages, max_tokens=order.max_tokens, temperature=order.temperature)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return "/exit"


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
