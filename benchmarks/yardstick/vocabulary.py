"""A byte-level BPE tokenizer of any size without a corpus: the merges are the first pairs of bytes.

Its text is of no use; it exists because engines and converters refuse a checkpoint without one.
"""

import json
from itertools import islice, product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT)
FIRST_ORDINARY = len(_SPECIAL)
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% else %}<｜Assistant｜>{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def write_tokenizer(folder: Path, size: int) -> None:
    """Write `tokenizer.json` with exactly `size` ids, and its configuration with a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(product(letters, letters), size - len(_SPECIAL) - len(letters)))
    words = [*_SPECIAL, *letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: id_ for id_, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False))
