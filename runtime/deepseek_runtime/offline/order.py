"""What a command line of `dsv3 generate` asks for, checked before a process is started or a weight is read."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from deepseek_runtime.settings import Settings, StartupError

DESCRIPTION = "Answer questions in this process, or on every rank that torchrun starts, without a server."
SERVER_FIELDS = {"model", "config", "served_model_name", "host", "port", "health_port", "api_key_folder"}
ENGINE_FIELDS = [field for field in dataclasses.fields(Settings) if field.name not in SERVER_FIELDS]
EPILOG = "Flags of the engine, as `python -m deepseek_runtime.serve --help` explains them: " + ", ".join(
    f"--{field.name.replace('_', '-')}" for field in ENGINE_FIELDS
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and its file and line if it has one."""

    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class Order:
    """Questions to answer together, or None to talk; `engine` are flags that the engine understands."""

    model: str
    config: Path | None
    questions: tuple[Question, ...] | None
    max_tokens: int | None
    temperature: float
    processes: int
    verbose: bool
    engine: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartupError(message)


def parse(arguments: Sequence[str]) -> Order:
    """The order behind arguments; StartupError in a sentence for what cannot be done."""
    options = _parser().parse_args(arguments)
    return Order(
        model=options.model,
        config=options.config,
        questions=_questions(options),
        max_tokens=options.max_new_tokens,
        temperature=options.temperature,
        processes=options.nproc,
        verbose=options.verbose,
        engine=tuple(_engine_flags(options)),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dsv3 generate", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    add = parser.add_argument
    add("prompt", nargs="?", help="one question")
    add("--interactive", action="store_true", help="talk; /clear forgets what was said, /exit or Ctrl-D ends")
    add("--input-file", type=Path, help="file with one prompt per line, all answered together")
    add("--model", "-m", "--ckpt-path", default="tutor", help="checkpoint folder, hub name, or 'tutor' (default)")
    add("--config", type=Path, help="a config.json to use instead of the checkpoint's")
    add(
        "--max-new-tokens",
        "--max-tokens",
        type=_positive,
        help="bound on the tokens of an answer (default: the context)",
    )
    add("--temperature", type=_temperature, default=0.0, help="0 to 2; 0, the default, takes the likeliest token")
    add("--nproc", type=_positive, default=1, help="processes on this machine, one per accelerator (default: 1)")
    add("--verbose", action="store_true", help="log what the ranks do")
    for field in ENGINE_FIELDS:
        action = argparse.BooleanOptionalAction if field.type == "bool" else "store"
        add(f"--{field.name.replace('_', '-')}", help=argparse.SUPPRESS, action=action)
    return parser


def _engine_flags(options: argparse.Namespace) -> Iterator[str]:
    """The flags of the engine that were given, for its own parser to judge."""
    for field in ENGINE_FIELDS:
        name, value = field.name.replace("_", "-"), getattr(options, field.name)
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif value is not None:
            yield f"--{name}={value}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"must be 0 to 2, not {text}")
    return value


def _questions(options: argparse.Namespace) -> tuple[Question, ...] | None:
    given = [options.prompt is not None, options.interactive, options.input_file is not None]
    if sum(given) != 1:
        raise StartupError("give exactly one of: a prompt, --input-file FILE, --interactive")
    if options.interactive:
        return None
    if options.input_file is None:
        return (_asked(options.prompt),)
    return _read(options.input_file)


def _asked(prompt: str) -> Question:
    if not prompt.strip():
        raise StartupError("the prompt is empty")
    return Question(prompt, "")


def _read(file: Path) -> tuple[Question, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise StartupError(f"--input-file {file}: {reason}") from error
    found = (Question(line.strip(), f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip())
    if not (questions := tuple(found)):
        raise StartupError(f"--input-file {file}: holds no prompt; write one per line")
    return questions
