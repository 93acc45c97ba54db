"""Reads fields of `config.json` by the type that they must have. What is wrong is said with the field's full name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

Json = Mapping[str, Any]
Values = tuple[Any, ...]
MAX_REAL = 1e30
"""JSON knows integers that no float holds, and Python's reader takes NaN and Infinity."""
MAX_SHOWN = 60


class ConfigError(ValueError):
    """A `config.json` that this runtime cannot follow; the message names the field and says what it may be."""


class Fields:
    """The fields of one JSON object, each read as the type that it must have; null is the same as absent."""

    def __init__(self, raw: object, name: str, separator: str = ": ") -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{name} is {json.dumps(raw)}, expected an object")
        self._raw: Json = raw
        self._prefix = f"{name}{separator}"

    def of(self, name: str) -> str:
        """A field's full name for messages."""
        return f"{self._prefix}{name}"

    def with_defaults(self, defaults: Json) -> Fields:
        return Fields({**defaults, **self._raw}, self._prefix, "")

    def get(self, name: str) -> Any:
        return self._raw.get(name)

    def section(self, name: str) -> Fields | None:
        """A nested object; None where it is absent or empty."""
        raw = self._raw.get(name)
        return None if raw in (None, {}) else Fields(raw, self.of(name), ".")

    def allow(self, names: Set[str]) -> None:
        """ConfigError for the first field with another name, unless its value says nothing: null, false, 0, empty."""
        for name, value in self._raw.items():
            if value and name not in names:
                raise ConfigError(
                    f"{self.of(name)} is {_shown(value)}, a field that this runtime does not know; it may change what "
                    "is computed: take it out only if you know that it does not"
                )

    def demand(self, computed: Mapping[str, Values]) -> None:
        """ConfigError for the first field with a value other than those given."""
        for name, allowed in computed.items():
            if not any(_same(value := self.get(name), known) for known in allowed):
                shown = " or ".join(json.dumps(known) for known in allowed if known is not None) or "its absence"
                raise ConfigError(f"{self.of(name)} is {json.dumps(value)}, this runtime computes only {shown}")

    def flag(self, name: str) -> bool:
        """True or false, as JSON has them."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.of(name)} is {json.dumps(value)}, expected true or false")
        return value

    def whole(self, name: str) -> int:
        """A positive integer."""
        if self.get(name) is None:
            raise ConfigError(f"{self.of(name)} is missing")
        if not self.whole_or_zero(name):
            raise ConfigError(f"{self.of(name)} is 0, expected a positive integer")
        return self.whole_or_zero(name)

    def whole_or_zero(self, name: str) -> int:
        """An integer from 0 on; 0 where it is absent."""
        value = self.get(name)
        if value is None:
            return 0
        if type(value) is not int or value < 0:
            raise ConfigError(f"{self.of(name)} is {json.dumps(value)}, expected an integer that is not negative")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A positive number, which some checkpoints write as an integer."""
        value = default if self.get(name) is None else self.get(name)
        if value is None:
            raise ConfigError(f"{self.of(name)} is missing")
        if type(value) not in (int, float) or not 0 < value < MAX_REAL:
            raise ConfigError(f"{self.of(name)} is {json.dumps(value)}, expected a positive number")
        return float(value)


def _same(value: object, known: object) -> bool:
    """Equality in which 1 is not true."""
    return value == known and isinstance(value, bool) == isinstance(known, bool)


def _shown(value: object) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
