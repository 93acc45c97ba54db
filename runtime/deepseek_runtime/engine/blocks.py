"""Paged blocks of the latent cache: which are free, and enough of them for a sequence before it runs."""

from __future__ import annotations

from collections import deque

from deepseek_runtime.engine.sequence import Sequence


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens. A block belongs to at most one sequence."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"the cache needs at least one block of one token, got {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return 1 - self.free / self.num_blocks

    @property
    def capacity(self) -> int:
        """Tokens that fit when one sequence has everything."""
        return self.num_blocks * self.block_size

    def grow(self, sequence: Sequence, length: int) -> bool:
        """Give the sequence blocks for its first `length` tokens; False, with nothing changed, if too few are free."""
        missing = -(-length // self.block_size) - len(sequence.blocks)
        if missing > self.free:
            return False
        sequence.blocks.extend(self._free.popleft() for _ in range(missing))
        return True

    def release(self, sequence: Sequence) -> None:
        """Take back every block of the sequence; what it had computed is lost."""
        self._free.extend(sequence.blocks)
        sequence.blocks.clear()
        sequence.computed = 0
