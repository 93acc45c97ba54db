"""From a checkpoint to an engine that answers, and the limits that memory and checkpoint set."""

from dataclasses import replace

import pytest

from deepseek_runtime.dist.group import Group
from deepseek_runtime.engine import build
from deepseek_runtime.engine.build import Limits, load_rank
from deepseek_runtime.server.local import open_local
from deepseek_runtime.settings import Settings, StartupError
from fake_model import write_tokenizer
from tiny_checkpoint import v2_lite_config, v3_config, write_checkpoint

MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = write_tokenizer(tmp_path_factory.mktemp("tiny"))
    write_checkpoint(folder, v3_config(vocab_size=272, max_position_embeddings=4096))
    return Settings(model=folder, served_model_name=("tiny",), device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A checkpoint without an MTP layer."""
    folder = write_tokenizer(tmp_path_factory.mktemp("plain"))
    write_checkpoint(folder, v2_lite_config(vocab_size=272, max_position_embeddings=4096))
    return Settings(model=folder, served_model_name=("plain",), device="cpu")


def limits(settings: Settings) -> Limits:
    return load_rank(settings, Group(), lambda _: None).limits


def test_by_default_four_whole_contexts_fit(settings: Settings) -> None:
    assert limits(settings) == Limits(kv_tokens=4 * 4096, max_model_len=4096)


def test_a_small_cache_bounds_the_context(settings: Settings) -> None:
    assert limits(replace(settings, kv_tokens=1000)) == Limits(kv_tokens=960, max_model_len=960)


@pytest.mark.parametrize(
    ("kv_tokens", "max_model_len", "sentence"),
    [
        (None, 5000, "5000 is more than the checkpoint's 4096"),
        (128, 4000, "4000 does not fit into a cache of 128 tokens"),
        (63, None, "a cache of 63 tokens has no block of 64"),
    ],
)
def test_lengths_that_cannot_be_are_refused_with_numbers(
    settings: Settings, kv_tokens: int | None, max_model_len: int | None, sentence: str
) -> None:
    with pytest.raises(StartupError, match=sentence):
        limits(replace(settings, kv_tokens=kv_tokens, max_model_len=max_model_len))


def test_blocks_budget_and_drafts_do_not_change_the_text(settings: Settings) -> None:
    texts = set()
    for block_size, budget, drafts in [(64, 512, 0), (4, 7, None), (16, 512, 3)]:
        changed = replace(
            settings, block_size=block_size, max_batch_tokens=budget, max_running=4, speculative_tokens=drafts
        )
        local = open_local(changed, lambda _: None)
        texts.add("".join(local.answer(MESSAGES, max_tokens=24)))
        assert local.engine.stop(10)
    assert len(texts) == 1


def test_by_default_one_token_is_drafted_where_there_is_a_layer_for_it(settings: Settings, plain: Settings) -> None:
    for checkpoint, positions in ((settings, 1), (plain, 0)):
        local = open_local(checkpoint, lambda _: None)
        assert len("".join(local.answer(MESSAGES, max_tokens=8))) > 0
        assert len(local.engine.stats().speculation.drafted) == positions
        assert local.engine.stop(10)


def test_drafting_without_a_layer_for_it_is_refused_before_weights_are_read(plain: Settings) -> None:
    progress: list[float] = []
    with pytest.raises(StartupError, match="--speculative-tokens 2 needs an MTP layer"):
        load_rank(replace(plain, speculative_tokens=2), Group(), progress.append)
    assert progress == []
    load_rank(replace(plain, speculative_tokens=0), Group(), progress.append)


@pytest.mark.parametrize(("drafts", "layers"), [(0, 3), (1, 4), (None, 4)])
def test_a_layer_that_never_drafts_has_no_part_of_the_caches_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, drafts: int | None, layers: int
) -> None:
    bytes_per_token = layers * (64 + 16) * 4
    monkeypatch.setattr(build, "CPU_CACHE_BYTES", 640 * bytes_per_token + 1)
    assert limits(replace(settings, speculative_tokens=drafts)).kv_tokens == 640


@pytest.mark.parametrize("caching", [True, False])
def test_equal_beginnings_are_computed_once_if_wanted(settings: Settings, caching: bool) -> None:
    local = open_local(replace(settings, block_size=4, prefix_caching=caching), lambda _: None)
    texts = {"".join(local.answer(MESSAGES, max_tokens=8)) for _ in range(2)}
    assert len(texts) == 1
    assert (local.engine.stats().prefix_hits > 0) is caching
    assert local.engine.stop(10)


def test_a_conversation_that_is_too_long_is_refused_with_both_numbers(settings: Settings) -> None:
    local = open_local(replace(settings, kv_tokens=64), lambda _: None)
    with pytest.raises(ValueError, match=r"has \d+ tokens, the model takes up to 64"):
        list(local.answer([{"role": "user", "content": "x" * 100}]))
    assert local.engine.stop(10)
