"""The text sides of the releases' checkpoints: a byte-level tokenizer with their added tokens, and a template each."""

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parents[1] / "runtime" / "text" / "templates"
ROLES = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
TOOLS = tuple(f"<｜tool▁{one}｜>" for one in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))
RESULTS = tuple(f"<｜tool▁{one}｜>" for one in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end"))
KIMI = tuple(f"<|im_{one}|>" for one in ("system", "user", "assistant", "tool", "middle", "end"))


def make_release(name: str, folder: Path) -> ChatTemplate:
    """The chat template of a release, by the name of its file; `folder` gets the files of its text side."""
    special = ("[BOS]", "[EOS]", *KIMI) if name == "kimi" else (*ROLES, *TOOLS, *RESULTS)
    words = () if name in ("kimi", "v3", "v3-0324") else ("<think>", "</think>")
    write_text_side(folder, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), special, words)
    return ChatTemplate(folder, Tokenizer(folder))


def write_text_side(folder: Path, template: str, special: tuple[str, ...], words: tuple[str, ...] = ()) -> None:
    """The files of a tokenizer of one token a byte; the first two special tokens begin and end a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(
        models.BPE(vocab={piece: id_ for id_, piece in enumerate((*special[:2], *alphabet))}, merges=[])
    )
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    fast.add_tokens([AddedToken(one, special=False, normalized=False) for one in words])
    fast.save(str(folder / "tokenizer.json"))
    config = {"bos_token": special[0], "eos_token": special[1], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
