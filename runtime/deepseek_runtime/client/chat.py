"""`dsv3 chat`: a conversation in the terminal with any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from deepseek_runtime.client.endpoint import Endpoint, EndpointError, text_of

QUOTES = '"""'
NUMBERS: dict[str, Callable[[str], float]] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float, "max_tokens": int, "seed": int,
    "presence_penalty": float, "frequency_penalty": float, "repetition_penalty": float,
}  # fmt: skip

HELP = f"""\
/new               forget the conversation
/undo              take back the last question and its answer
/retry             ask the last question again
/system [TEXT]     set the system prompt, or remove it
/set [NAME VALUE]  set {", ".join(NUMBERS)}; without a value: the endpoint's own
/thinking on|off   let the model reason first, or not
/model [NAME]      show the models, or change to another
/save FILE         write the conversation as JSON
/load FILE         go on with one that was saved
/exit              leave, as Ctrl-D does
{QUOTES} begins and ends a message of several lines. Ctrl-C stops an answer."""


@dataclass(slots=True)
class Conversation:
    """What is sent with the next question."""

    model: str
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The request for an answer to the messages so far."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages], **self.options}

    def take_back(self) -> str | None:
        """Remove the last question with all that followed; the question."""
        for place in range(len(self.messages) - 1, -1, -1):
            if self.messages[place]["role"] == "user":
                question = self.messages[place]["content"]
                del self.messages[place:]
                return question
        return None


class Chat:
    """Reads lines, carries out commands, streams answers. `read` returns a line or raises EOFError at the end."""

    def __init__(
        self, endpoint: Endpoint, conversation: Conversation, console: Console, read: Callable[[], str]
    ) -> None:
        self._endpoint = endpoint
        self._talk = conversation
        self._console = console
        self._read = read

    def run(self) -> None:
        """Talk until the end of the input or `/exit`."""
        for line in self._messages():
            try:
                if line.startswith("/"):
                    if line == "/exit":
                        return
                    self._command(*line[1:].split(maxsplit=1))
                else:
                    self.ask(line)
            except (EndpointError, ValueError, OSError) as error:
                self._console.print(f"error: {error}", style="red", markup=False, highlight=False)

    def ask(self, question: str) -> None:
        """Send a question and show the answer as it comes. Without any answer the question is taken back."""
        self._talk.messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        try:
            self._show(pieces)
        except KeyboardInterrupt:
            self._console.print(" [stopped]", style="yellow", markup=False)
        except EndpointError:
            self._console.print()
            raise
        finally:
            if answer := "".join(pieces):
                self._talk.messages.append({"role": "assistant", "content": answer})
            else:
                self._talk.messages.pop()

    def _show(self, pieces: list[str]) -> None:
        """Print the answer as it comes, and add its content to `pieces`: what has come stays when it breaks off."""
        reasoned = False
        for chunk in self._endpoint.chat(self._talk.body):
            reasoning, content = text_of(chunk)
            if reasoning:
                self._console.out(reasoning, end="", style="dim", highlight=False)
                reasoned = True
            if content:
                gap = "\n\n" if reasoned and not pieces else ""
                self._console.out(gap + content, end="", highlight=False)
                pieces.append(content)
        self._console.out()

    def _messages(self) -> Iterator[str]:
        """Messages and commands, without blank ones."""
        while True:
            try:
                text = self._read_message().strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if text:
                yield text

    def _read_message(self) -> str:
        line = self._read()
        if not line.lstrip().startswith(QUOTES):
            return line
        lines = [line.lstrip().removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(self._read())
        return "\n".join(lines).rstrip().removesuffix(QUOTES)

    def _command(self, name: str = "", argument: str = "") -> None:
        command = getattr(self, f"_do_{name}", None) if name.isalpha() else None
        if command is None:
            raise ValueError(f"there is no command /{name}: /help lists them")
        command(argument.strip())

    def _say(self, text: str) -> None:
        self._console.print(text, style="cyan", markup=False, highlight=False)

    def _do_help(self, _: str) -> None:
        self._say(HELP)

    def _do_new(self, _: str) -> None:
        self._talk.messages.clear()
        self._say("a new conversation")

    def _do_undo(self, _: str) -> None:
        question = self._talk.take_back()
        self._say(f"taken back: {question}" if question else "there is nothing to take back")

    def _do_retry(self, _: str) -> None:
        question = self._talk.take_back()
        if question is None:
            raise ValueError("there is no question to ask again")
        self.ask(question)

    def _do_system(self, text: str) -> None:
        self._talk.system = text
        self._say("system prompt set" if text else "no system prompt")

    def _do_set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not name:
            self._say(json.dumps(self._talk.options) if self._talk.options else "everything as the endpoint has it")
            return
        if name not in NUMBERS:
            raise ValueError(f"{name} cannot be set, only {', '.join(NUMBERS)}")
        self._talk.options.pop(name, None)
        if value.strip():
            self._talk.options[name] = NUMBERS[name](value)

    def _do_thinking(self, text: str) -> None:
        if text not in ("on", "off"):
            raise ValueError("say /thinking on or /thinking off")
        self._talk.options["chat_template_kwargs"] = {"thinking": text == "on"}

    def _do_model(self, name: str) -> None:
        served = self._endpoint.models()
        if name and name not in served:
            raise ValueError(f"{name} is not served here, only {', '.join(served)}")
        self._talk.model = name or self._talk.model
        self._say("\n".join(f"{'*' if model == self._talk.model else ' '} {model}" for model in served))

    def _do_save(self, file: str) -> None:
        if not file:
            raise ValueError("say /save FILE")
        content = {"model": self._talk.model, "system": self._talk.system, "messages": self._talk.messages}
        Path(file).expanduser().write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        self._say(f"saved {len(self._talk.messages)} messages in {file}")

    def _do_load(self, file: str) -> None:
        if not file:
            raise ValueError("say /load FILE")
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
        messages = content.get("messages") if isinstance(content, dict) else None
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise ValueError(f"{file} is not a conversation that /save wrote")
        self._talk.system, self._talk.messages = str(content.get("system", "")), messages
        self._say(f"{len(messages)} messages")


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
