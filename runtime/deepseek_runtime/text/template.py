"""The checkpoint's own chat template, in a sandbox, with messages brought into the one shape that templates expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from deepseek_runtime.text.dialect import choose_dialect
from deepseek_runtime.text.sandbox import TemplateRefusal, compile_template, render
from deepseek_runtime.text.tokenizer import CheckpointError, Tokenizer, read_json

__all__ = ["ChatTemplate", "Messages", "TemplateRefusal"]

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """Renders a conversation to text and encodes it, with exactly one beginning-of-sequence token in front."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        source = _source(folder)
        try:
            self._template = compile_template(source)
        except TemplateError as error:
            raise CheckpointError(f"{folder}: the chat template cannot be parsed: {error}") from error
        self.dialect = choose_dialect(source, tokenizer)

    def encode(
        self, messages: Messages, *, proceed: bool = False, variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn.

        With `proceed` the last message is the beginning of that turn, to be continued right behind its last character.
        `variables` are passed to the template. Raises TemplateRefusal for messages that the template does not take.
        """
        text = self.render(messages, proceed=proceed, variables=variables)
        ids = self._tokenizer.encode(text)
        bos = self._tokenizer.bos_id
        if bos is None:
            return ids
        return [bos, *(id_ for id_ in ids if id_ != bos)]

    def render(self, messages: Messages, *, proceed: bool = False, variables: Mapping[str, Any] | None = None) -> str:
        """The conversation as text."""
        normal = [_normalise(message) for message in messages]
        values: dict[str, Any] = {
            "messages": normal,
            "add_generation_prompt": not proceed,
            "bos_token": self._tokenizer.bos_token or "",
            "eos_token": self._tokenizer.eos_token or "",
        }
        text = render(self._template, {**(variables or {}), **values})
        return _cut_behind(text, normal[-1]["content"]) if proceed else text


def _normalise(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with a string as content: null is empty, parts are joined; `developer` is the new name of `system`."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    role = "system" if message["role"] == "developer" else message["role"]
    return {**message, "role": role, "content": content or ""}


def _cut_behind(text: str, content: str) -> str:
    """The text up to the end of the last message, without the end-of-turn mark that the template put behind it."""
    wanted = content.strip()
    position = text.rfind(wanted)
    if not wanted or position < 0:
        raise TemplateRefusal("the last message must have text that the chat template shows, to be continued")
    return text[: position + len(wanted)] + content[len(content.rstrip()) :]


def _source(folder: Path) -> str:
    """The template's text: `chat_template.jinja` if there is one, else the entry of tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates: the one called default
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise CheckpointError(f"{folder}: neither chat_template.jinja nor a chat_template in tokenizer_config.json")
    return template
