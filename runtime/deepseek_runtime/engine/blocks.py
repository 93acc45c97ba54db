"""Paged blocks of the latent cache: who holds them, which are free, and which free ones hold a prefix worth keeping.

Full blocks of computed tokens stay known after their sequence has let go of them, and a later sequence that begins
alike takes them instead of computing them. Shared blocks are full, so nobody writes to them. When no empty block is
left, the known block unused for longest is emptied. A sequence lets go of its last block first, so children always
leave before their parents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from deepseek_runtime.engine.prefix import ROOT, Piece, PrefixIndex
from deepseek_runtime.engine.sequence import Sequence


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens; with `prefix_caching`, equal prefixes share theirs.

    `queries` and `hits` count the tokens of new sequences and those of them found in the cache, `evictions` the known
    blocks that had to be emptied.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"the cache needs at least one block of one token, got {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.queries = 0
        self.hits = 0
        self.evictions = 0
        self._references = [0] * num_blocks
        self._empty = list(reversed(range(num_blocks)))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known blocks that nobody holds, longest unused first
        self._index = PrefixIndex()

    @property
    def free(self) -> int:
        """Blocks that no sequence holds, those with a known prefix included."""
        return len(self._empty) + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of blocks held by sequences, 0 to 1."""
        return 1 - self.free / self.num_blocks

    @property
    def capacity(self) -> int:
        """Tokens that fit when one sequence has everything."""
        return self.num_blocks * self.block_size

    def match(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the beginning of a sequence; never all of it, as its last token's logits are wanted."""
        return self._index.match(self._pieces(sequence, 0, (len(sequence) - 1) // self.block_size))

    def fits(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether there are blocks for all tokens of a sequence that holds none, beyond its cached `prefix`."""
        idle = sum(not self._references[block] for block in prefix)
        return self._blocks_for(len(sequence)) - len(prefix) <= self.free - idle

    def admit(self, sequence: Sequence, prefix: list[int]) -> None:
        """Give a sequence that `fits` blocks for all its tokens, first those of `prefix`, as `match` has found it."""
        for block in prefix:
            self._take(block)
        sequence.blocks.extend(prefix)
        sequence.computed = len(prefix) * self.block_size
        if not sequence.preemptions:
            sequence.cached = sequence.computed
            self.queries += len(sequence)
            self.hits += sequence.cached
        self.grow(sequence, len(sequence))

    def grow(self, sequence: Sequence, length: int) -> bool:
        """Give the sequence blocks for its first `length` tokens; False, with nothing changed, if too few are free."""
        missing = self._blocks_for(length) - len(sequence.blocks)
        if missing > self.free:
            return False
        sequence.blocks.extend(self._fresh() for _ in range(missing))
        return True

    def shrink(self, sequence: Sequence, length: int) -> None:
        """Take back the blocks behind the first `length` tokens, which only rejected drafts had needed."""
        while len(sequence.blocks) > self._blocks_for(length):
            self._give(sequence.blocks.pop())

    def register(self, sequence: Sequence, start: int) -> None:
        """Make known the blocks that were filled since `start` tokens were computed.

        Where another block holds the same already, the sequence goes on with that one and its own is free again.
        """
        if self.prefix_caching:
            first, last = start // self.block_size, sequence.computed // self.block_size
            for index, piece in enumerate(self._pieces(sequence, first, last), first):
                self._register(sequence.blocks, index, piece)

    def release(self, sequence: Sequence) -> None:
        """Take back every block of the sequence; what it had computed stays only as long as it is not emptied."""
        for block in reversed(sequence.blocks):
            self._give(block)
        sequence.blocks.clear()
        sequence.computed = 0

    def _register(self, blocks: list[int], index: int, piece: Piece) -> None:
        own = blocks[index]
        known = self._index.add(blocks[index - 1] if index else ROOT, piece, own)
        if known != own:
            self._take(known)
            blocks[index] = known
            self._give(own)

    def _pieces(self, sequence: Sequence, first: int, last: int) -> Iterator[Piece]:
        """The tokens of blocks [first, last)."""
        size = self.block_size
        return (tuple(sequence.tokens(index * size, (index + 1) * size)) for index in range(first, last))

    def _blocks_for(self, length: int) -> int:
        return -(-length // self.block_size)

    def _fresh(self) -> int:
        """A block whose contents nobody needs."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._index.remove(block)
            self.evictions += 1
        self._references[block] = 1
        return block

    def _take(self, block: int) -> None:
        """Hold a known block."""
        if not self._references[block]:
            del self._idle[block]
        self._references[block] += 1

    def _give(self, block: int) -> None:
        """Let go of a block; the last one to do so leaves it idle if it is known, else empty."""
        self._references[block] -= 1
        if self._references[block]:
            return
        if block in self._index:
            self._idle[block] = None
        else:
            self._empty.append(block)
