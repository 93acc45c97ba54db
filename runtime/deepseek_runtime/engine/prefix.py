"""Which blocks hold which tokens: a tree of full blocks, so that equal prefixes are computed once.

A block is known by its parent, the block before it, and its own tokens. The dictionary hashes that pair, so that hashes
are chained over the whole prefix, and compares it by value: prefixes with equal hashes are still told apart. A block is
a good name for a prefix only while it holds it, so it must never leave before its children.
"""

from __future__ import annotations

from collections.abc import Iterable

Piece = tuple[int, ...]
"""The tokens of one full block."""

ROOT = -1
"""The parent of a sequence's first block."""


class PrefixIndex:
    """Finds blocks by what they hold. Knows nothing of who uses them."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, Piece], int] = {}
        self._keys: dict[int, tuple[int, Piece]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, pieces: Iterable[Piece]) -> list[int]:
        """The blocks that hold the first of `pieces`, as many as are known; pieces are read no further than that."""
        found: list[int] = []
        parent = ROOT
        for piece in pieces:
            block = self._blocks.get((parent, piece))
            if block is None:
                break
            found.append(block)
            parent = block
        return found

    def add(self, parent: int, piece: Piece, block: int) -> int:
        """Make a full block known; the block that already holds the same behind the same parent, else `block`."""
        known = self._blocks.setdefault((parent, piece), block)
        if known == block:
            self._keys[block] = (parent, piece)
        return known

    def remove(self, block: int) -> None:
        """Forget a block that has no known children."""
        del self._blocks[self._keys.pop(block)]
