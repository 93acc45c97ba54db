"""From a checkpoint to an engine that answers, and the limits that memory and checkpoint set."""

from dataclasses import replace

import pytest

from deepseek_runtime.dist.group import Group
from deepseek_runtime.engine.build import Limits, load_rank
from deepseek_runtime.server.local import open_local
from deepseek_runtime.settings import Settings, StartupError
from fake_model import write_tokenizer
from tiny_checkpoint import v3_config, write_checkpoint

MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = write_tokenizer(tmp_path_factory.mktemp("tiny"))
    write_checkpoint(folder, v3_config(vocab_size=272, max_position_embeddings=4096))
    return Settings(model=folder, served_model_name=("tiny",), device="cpu")


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


def test_blocks_and_budget_do_not_change_the_text(settings: Settings) -> None:
    texts = set()
    for block_size, budget in [(64, 512), (4, 7)]:
        changed = replace(settings, block_size=block_size, max_batch_tokens=budget, max_running=4)
        local = open_local(changed, lambda _: None)
        texts.add("".join(local.answer(MESSAGES, max_tokens=24)))
        assert local.engine.stop(10)
    assert len(texts) == 1


def test_a_conversation_that_is_too_long_is_refused_with_both_numbers(settings: Settings) -> None:
    local = open_local(replace(settings, kv_tokens=64), lambda _: None)
    with pytest.raises(ValueError, match=r"has \d+ tokens, the model takes up to 64"):
        list(local.answer([{"role": "user", "content": "x" * 100}]))
    assert local.engine.stop(10)
