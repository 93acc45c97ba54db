"""Random JSON schemas that are bounded in every direction: what a model without sense writes under them still ends.

Strings have a length, arrays a size, integers a range and objects no other properties; no two of a run need be equal.
"""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
LETTERS = 'abcxyzABC_- "\\/éß中😀'
PATTERNS = ("^[a-c]{2,4}$", "^(x|yy)[0-9]?$", "^[A-Z][a-z]{1,3}$")
FORMATS = ("date", "uuid", "ipv4")


def random_schema(dice: random.Random, depth: int = 2) -> Schema:
    """Any JSON value, nested at most `depth` deep."""
    kinds = _LEAVES if depth == 0 else (*_LEAVES, *_NESTED, *_NESTED)
    return dice.choice(kinds)(dice, depth)


def random_object(dice: random.Random, depth: int = 2) -> Schema:
    """An object of one to three properties, some of them optional; what tools have as parameters."""
    names = dict.fromkeys(random_text(dice, 1, 5) for _ in range(dice.randint(1, 3)))
    return {
        "type": "object",
        "properties": {name: random_schema(dice, depth - 1) for name in names},
        "required": [name for name in names if dice.random() < 0.7],
        "additionalProperties": False,
    }


def random_text(dice: random.Random, least: int, most: int) -> str:
    """Letters of several alphabets, quotes and backslashes."""
    return "".join(dice.choices(LETTERS, k=dice.randint(least, most)))


def _integer(dice: random.Random, _: int) -> Schema:
    low = dice.randint(-200, 200)
    return {"type": "integer", "minimum": low, "maximum": low + dice.randint(0, 150)}


def _string(dice: random.Random, _: int) -> Schema:
    least = dice.randint(0, 2)
    return {"type": "string", "minLength": least, "maxLength": least + dice.randint(0, 6)}


def _enum(dice: random.Random, _: int) -> Schema:
    values = dict.fromkeys(random_text(dice, 0, 6) for _ in range(dice.randint(1, 4)))
    return {"enum": [*values, dice.randint(0, 99), None][: dice.randint(1, len(values) + 2)]}


def _array(dice: random.Random, depth: int) -> Schema:
    least = dice.randint(0, 2)
    items = random_schema(dice, depth - 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + dice.randint(0, 1)}


def _either(dice: random.Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(dice, depth - 1) for _ in range(dice.randint(1, 3))]}


def _shared(dice: random.Random, depth: int) -> Schema:
    """Two items of one definition, which stands beside them."""
    item = {"type": "array", "items": {"$ref": "#/$defs/it"}, "minItems": 1, "maxItems": 2}
    return item | {"$defs": {"it": random_schema(dice, 0)}} if depth == 2 else _array(dice, depth)


_LEAVES: tuple[Callable[[random.Random, int], Schema], ...] = (
    _integer,
    _string,
    _enum,
    lambda dice, _: {"type": dice.choice(["boolean", "null", ["boolean", "null"]])},
    lambda dice, _: {"const": dice.choice([True, None, 7, random_text(dice, 0, 5)])},
    lambda dice, _: {"type": "string", "pattern": dice.choice(PATTERNS)},
    lambda dice, _: {"type": "string", "format": dice.choice(FORMATS)},
)
_NESTED = (random_object, _array, _either, _shared)
