"""Chat templates are programs from a stranger's checkpoint: they run in jinja's sandbox and can only make text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefusal(ValueError):
    """The template cannot render these messages."""


def compile_template(source: str) -> Template:
    """A chat template, ready to be rendered; jinja2.TemplateError if it is no template."""
    return _ENVIRONMENT.from_string(source)


def render(template: Template, values: Mapping[str, Any]) -> str:
    """The text that a template makes of some values; TemplateRefusal if it makes none, whatever the reason."""
    try:
        return template.render(values)
    except TemplateRefusal:
        raise
    except Exception as error:  # a stranger's program: it may raise anything, running out of memory or depth included
        what = str(error) or type(error).__name__
        raise TemplateRefusal(f"the model's chat template cannot render these messages: {what}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """The dialect that published templates are written in: trimmed blocks, loop controls and three helpers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON without HTML escapes: the reader is a model, not a browser."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateRefusal(message)


_ENVIRONMENT = _environment()
