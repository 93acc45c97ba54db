"""The tree of known blocks: what is found, and that equal hashes never pass for equal tokens."""

from deepseek_runtime.engine.prefix import ROOT, PrefixIndex

MODULUS = 2**61 - 1
"""Python hashes an integer to its remainder by this prime, so 0 and this have equal hashes."""


def index(*chain: tuple[int, ...]) -> PrefixIndex:
    """An index of one prefix, in blocks 0, 1, …"""
    subject = PrefixIndex()
    for block, piece in enumerate(chain):
        assert subject.add(block - 1 if block else ROOT, piece, block) == block
    return subject


def test_the_longest_known_beginning_is_found() -> None:
    subject = index((1, 2), (3, 4), (5, 6))
    assert subject.match([(1, 2), (3, 4), (5, 6), (7, 8)]) == [0, 1, 2]
    assert subject.match([(1, 2), (3, 4), (9, 9), (5, 6)]) == [0, 1]
    assert subject.match([(3, 4)]) == []


def test_pieces_behind_the_first_unknown_one_are_not_even_read() -> None:
    pieces = iter([(1, 2), (9, 9), (8, 8)])
    assert index((1, 2)).match(pieces) == [0]
    assert list(pieces) == [(8, 8)]


def test_the_same_tokens_behind_another_prefix_are_another_block() -> None:
    subject = index((1, 2), (3, 4))
    assert subject.add(ROOT, (3, 4), 2) == 2
    assert subject.match([(3, 4)]) == [2]
    assert subject.match([(1, 2), (3, 4)]) == [0, 1]


def test_a_second_block_of_the_same_prefix_is_answered_with_the_first() -> None:
    subject = index((1, 2), (3, 4))
    assert subject.add(0, (3, 4), 7) == 1
    assert 7 not in subject
    assert subject.match([(1, 2), (3, 4)]) == [0, 1]


def test_a_removed_block_is_not_found_and_can_come_back_elsewhere() -> None:
    subject = index((1, 2), (3, 4))
    subject.remove(1)
    assert subject.match([(1, 2), (3, 4)]) == [0]
    assert subject.add(0, (3, 4), 5) == 5
    assert subject.match([(1, 2), (3, 4)]) == [0, 5]


def test_tokens_with_equal_hashes_are_told_apart() -> None:
    ours, theirs = (0, 5), (MODULUS, 5)
    assert hash((ROOT, ours)) == hash((ROOT, theirs))
    subject = index(ours)
    assert subject.match([theirs]) == []
    assert subject.add(ROOT, theirs, 1) == 1
    assert (subject.match([ours]), subject.match([theirs])) == ([0], [1])
