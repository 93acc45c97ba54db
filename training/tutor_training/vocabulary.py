"""The tutor's tokenizer: byte-level BPE learned from the dialogues, one token a digit, DeepSeek's special tokens."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tutor_training.problems import Dialogue, training_dialogues

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SPECIAL_TOKENS = [BOS, EOS, PAD, USER, ASSISTANT]  # ids 0 and 1 are the real model's

# Fewer than the model's vocab_size, as in the real release: the rows above the last id must never be sampled.
TOKENIZER_SIZE = 720

# The shape of DeepSeek-V3's own template: no newline anywhere, the system text right behind BOS.
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}"
    "{% for message in messages if message['role'] == 'system' %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}{{ message['content'] }}{% endfor %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


def _texts(dialogues: Iterator[Dialogue]) -> Iterator[str]:
    for dialogue in dialogues:
        yield dialogue.system
        for question, answer in dialogue.turns:
            yield question
            yield answer


def learn_tokenizer(seed: int, samples: int = 20_000) -> Tokenizer:
    """A tokenizer learned from `samples` training dialogues; it can encode any text, byte by byte if need be."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(itertools.islice(training_dialogues(seed), samples)), trainer)
    return tokenizer


def encode_dialogue(tokenizer: Tokenizer, dialogue: Dialogue) -> tuple[list[int], list[bool]]:
    """Token ids of a whole dialogue, and for each whether the assistant says it (and so must be learned)."""
    ids: list[int] = []
    learned: list[bool] = []

    def add(tokens: list[int], said: bool) -> None:
        ids.extend(tokens)
        learned.extend([said] * len(tokens))

    def text(value: str) -> list[int]:
        return list(tokenizer.encode(value, add_special_tokens=False).ids)

    def special(name: str) -> list[int]:
        id_ = tokenizer.token_to_id(name)
        assert id_ is not None, f"the tokenizer was learned without {name}"
        return [id_]

    add(special(BOS) + text(dialogue.system), False)
    for question, answer in dialogue.turns:
        add(special(USER) + text(question) + special(ASSISTANT), False)
        add(text(answer) + special(EOS), True)
    return ids, learned


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as the hub has them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")
