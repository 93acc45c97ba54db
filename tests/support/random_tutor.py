"""The tutor without what it learnt: its config, tokenizer and template, and random weights in its own formats."""

import json
import shutil
from pathlib import Path

from deepseek_runtime.settings import checkpoint_folder
from deepseek_runtime.text.dialect import FENCED
from tiny_checkpoint import write_checkpoint

TEXT_SIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
MARKS = dict(zip(sorted(FENCED.markers), range(720, 768), strict=False))
"""Ids of the marks around tool calls, among the model's rows that are padding in the tutor, as in the real model."""


def write_random_tutor(folder: Path, seed: int = 0) -> Path:
    """A checkpoint whose logits spread by about 2: nothing is certain, and everything comes to pass.

    The marks around tool calls are special tokens, as in the real checkpoints. The tutor lacks them, and would spend
    a hundred tokens on spelling them.
    """
    tutor = checkpoint_folder("tutor")
    write_checkpoint(folder, json.loads((tutor / "config.json").read_text()), seed=seed, fp8=True)
    for name in TEXT_SIDE:
        shutil.copy(tutor / name, folder / name)
    _add_marks(folder / "tokenizer.json")
    return folder


def _add_marks(file: Path) -> None:
    content = json.loads(file.read_text())
    rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": id_, "content": mark, **rules} for mark, id_ in MARKS.items()]
    file.write_text(json.dumps(content))
