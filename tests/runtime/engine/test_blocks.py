"""Blocks: handed out and returned exactly once, shared where prefixes are equal, emptied in the right order."""

import pytest

from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.sequence import Sequence

COLLIDING = 2**61 - 1
"""Has the hash of 0."""


def admitted(pool: BlockManager, prompt: list[int], id_: int = 0) -> Sequence:
    """A sequence that has just got blocks for its prompt."""
    sequence = Sequence(id_, tuple(prompt), SamplingParams(max_tokens=4))
    prefix = pool.match(sequence)
    assert pool.fits(sequence, prefix)
    pool.admit(sequence, prefix)
    return sequence


def compute(pool: BlockManager, sequence: Sequence) -> None:
    """Pretend that a step computed all tokens of the sequence."""
    start, sequence.computed = sequence.computed, len(sequence)
    pool.register(sequence, start)


def computed(pool: BlockManager, prompt: list[int], id_: int = 0) -> Sequence:
    sequence = admitted(pool, prompt, id_)
    compute(pool, sequence)
    return sequence


def remembered(pool: BlockManager, prompt: list[int]) -> int:
    """How many blocks of a prompt are in the cache; one more token makes the last of them count."""
    return len(pool.match(Sequence(99, (*prompt, 0), SamplingParams(max_tokens=1))))


def test_a_cache_without_blocks_is_refused_with_its_numbers() -> None:
    with pytest.raises(ValueError, match="at least one block of one token, got 0 of 64"):
        BlockManager(0, 64)


def test_too_few_free_blocks_change_nothing() -> None:
    pool = BlockManager(4, 2)
    sequence = admitted(pool, [1, 2, 3])
    assert not pool.grow(sequence, 9)
    assert (len(sequence.blocks), pool.free) == (2, 2)
    assert pool.grow(sequence, 8)
    assert (len(sequence.blocks), pool.free, pool.usage) == (4, 0, 1)


def test_blocks_behind_rejected_drafts_come_back() -> None:
    pool = BlockManager(4, 2)
    sequence = admitted(pool, [1, 2, 3])
    pool.grow(sequence, 7)
    pool.shrink(sequence, 4)
    assert (len(sequence.blocks), pool.free) == (2, 2)


def test_a_sequence_that_begins_alike_takes_the_blocks_of_one_that_runs() -> None:
    pool = BlockManager(8, 2)
    first = computed(pool, [1, 2, 3, 4, 5])
    second = admitted(pool, [1, 2, 3, 4, 6, 7])
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] not in first.blocks
    assert (second.computed, second.cached, pool.free) == (4, 4, 4)
    assert (pool.queries, pool.hits) == (11, 4)


def test_a_sequence_that_begins_alike_takes_the_blocks_of_one_that_ended() -> None:
    pool = BlockManager(8, 2)
    pool.release(computed(pool, [1, 2, 3, 4, 5]))
    assert pool.free == 8
    assert admitted(pool, [1, 2, 3, 4, 6, 7]).computed == 4
    assert pool.free == 5


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    pool = BlockManager(8, 2)
    pool.release(computed(pool, [1, 2, 3, 4]))
    again = admitted(pool, [1, 2, 3, 4])
    assert again.computed == 2


def test_a_block_computed_twice_is_kept_once() -> None:
    pool = BlockManager(8, 2)
    first, second = admitted(pool, [1, 2, 3, 4, 5]), admitted(pool, [1, 2, 3, 4, 6])
    compute(pool, first)
    compute(pool, second)
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert pool.free == 4
    pool.release(first)
    pool.release(second)
    assert (pool.free, remembered(pool, [1, 2, 3, 4])) == (8, 2)


def test_only_full_blocks_of_computed_tokens_are_known() -> None:
    pool = BlockManager(8, 2)
    sequence = admitted(pool, [1, 2, 3, 4, 5])
    assert remembered(pool, [1, 2]) == 0
    sequence.computed = 3
    pool.register(sequence, 0)
    assert (remembered(pool, [1, 2]), remembered(pool, [1, 2, 3, 4])) == (1, 1)
    sequence.computed = 5
    pool.register(sequence, 3)
    assert remembered(pool, [1, 2, 3, 4, 5, 0]) == 2


def test_generated_tokens_are_known_to_the_next_turn() -> None:
    pool = BlockManager(8, 2)
    sequence = computed(pool, [1, 2, 3])
    sequence.generated += [7, 8]
    pool.grow(sequence, 5)
    compute(pool, sequence)
    pool.release(sequence)
    assert admitted(pool, [1, 2, 3, 7, 8, 9]).computed == 4


def test_the_block_unused_for_longest_is_emptied_first_and_children_before_parents() -> None:
    pool = BlockManager(4, 2)
    old, new = computed(pool, [1, 2, 3, 4], 0), computed(pool, [5, 6, 7, 8], 1)
    pool.release(old)
    pool.release(new)
    admitted(pool, [9], 2)
    assert (remembered(pool, [1, 2, 3, 4]), remembered(pool, [5, 6, 7, 8])) == (1, 2)
    admitted(pool, [9], 3)
    assert (remembered(pool, [1, 2, 3, 4]), remembered(pool, [5, 6, 7, 8])) == (0, 2)
    admitted(pool, [9], 4)
    assert remembered(pool, [5, 6, 7, 8]) == 1
    assert pool.evictions == 3


def test_a_hit_makes_a_block_young_again() -> None:
    pool = BlockManager(4, 2)
    pool.release(computed(pool, [1, 2], 0))
    pool.release(computed(pool, [3, 4], 1))
    pool.release(admitted(pool, [1, 2, 0], 2))
    for id_ in (3, 4, 5):
        admitted(pool, [9], id_)
    assert (remembered(pool, [1, 2]), remembered(pool, [3, 4])) == (1, 0)


def test_a_block_that_somebody_holds_is_never_emptied() -> None:
    pool = BlockManager(4, 2)
    first = computed(pool, [1, 2, 3, 4])
    second = admitted(pool, [1, 2, 5])
    pool.release(first)
    assert pool.grow(second, 8)
    assert not pool.grow(second, 9)
    assert remembered(pool, [1, 2]) == 1
    assert len(set(second.blocks)) == 4


def test_cached_blocks_count_as_room_only_once() -> None:
    pool = BlockManager(3, 2)
    pool.release(computed(pool, [1, 2, 3, 4]))
    grown = Sequence(1, (1, 2, 3, 4, 5, 6, 7), SamplingParams(max_tokens=1))
    assert len(pool.match(grown)) == 2
    assert not pool.fits(grown, pool.match(grown))


def test_a_colliding_hash_gives_no_hit() -> None:
    pool = BlockManager(8, 2)
    computed(pool, [0, 1, 2])
    other = admitted(pool, [COLLIDING, 1, 2])
    assert hash((0, 1)) == hash((COLLIDING, 1))
    assert other.computed == 0
    compute(pool, other)
    assert remembered(pool, [0, 1]) == remembered(pool, [COLLIDING, 1]) == 1


def test_without_prefix_caching_nothing_is_remembered() -> None:
    pool = BlockManager(8, 2, prefix_caching=False)
    pool.release(computed(pool, [1, 2, 3, 4, 5]))
    assert remembered(pool, [1, 2, 3, 4]) == 0
    assert (admitted(pool, [1, 2, 3, 4, 5]).computed, pool.hits, pool.evictions) == (0, 0, 0)
