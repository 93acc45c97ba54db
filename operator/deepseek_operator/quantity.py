"""Kubernetes quantities ("141Gi", "250m") as exact numbers.

The client library parses them too, but planning must not import it; a test holds the two together.
"""

import re
from decimal import Decimal
from typing import Any

_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_BINARY = {f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", start=1)}
_DECIMAL = {prefix: Decimal(1000) ** power for power, prefix in enumerate("kMGTPE", start=1)}
_FACTOR = {"": Decimal(1), "m": Decimal("0.001")} | _BINARY | _DECIMAL

GIB = 1024**3


def parse(text: str) -> Decimal:
    """Return the value of a quantity; raise ValueError for anything else."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity: write a number and an optional unit, for example 141Gi or 500G")
    return Decimal(match[1]) * _FACTOR[match[2] or ""]


def parse_bytes(text: str) -> int:
    """Return a quantity of bytes, rounded down to whole ones."""
    return int(parse(text))


def gibibytes(count: int) -> str:
    """Return the smallest whole number of GiB that holds `count` bytes, as a quantity."""
    return f"{-(-count // GIB)}Gi"


def human(count: int) -> str:
    """Return bytes for a sentence, in GB (10^9) as sellers of devices and hubs of models count, or in MB below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def same_quantity(one: Any, other: Any) -> bool:
    """Tell whether two values are equal quantities in different spelling, such as "1000m" and 1."""
    if not (isinstance(one, str | int | float) and isinstance(other, str | int | float)):
        return False
    try:
        return parse(str(one)) == parse(str(other))
    except ValueError:
        return False
