"""A model without weights that says back what the user said, and the small byte-level tokenizer that goes with it.

It reads its context from a paged cache, as the real one does: a wrong block table, position or chunk changes its words.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from deepseek_runtime.engine.step import Outcome, StepPlan

BOS, EOS, USER, ASSISTANT, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", 8
SPECIALS = (BOS, EOS, USER, ASSISTANT)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'system' %}{{ m.content }}"
    "{% else %}{{ raise_exception('no role ' + m.role + ' here') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of one token per byte and DeepSeek's special tokens, with its chat template, in the hub's files."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {SPECIALS[0]: 0, SPECIALS[1]: 1} | {piece: 2 + i for i, piece in enumerate(alphabet)}
    fast = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    fast.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": BOS}, "eos_token": EOS, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class EchoExecutor:
    """After the assistant's mark it repeats the last user turn and ends; anywhere else it goes on counting.

    Logits are 10 for the right token, -10 for others, and 20 for the padding ids beyond the tokenizer's last: a sampler
    that looks there is caught.
    """

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int = 260) -> None:
        self.cache = torch.full((num_blocks, block_size), -1, dtype=torch.int64)
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.steps: list[StepPlan] = []
        self._drafting: list[tuple[list[int], int]] = []

    def run(self, plan: StepPlan) -> Tensor:
        """Logits of the positions that the plan wants."""
        self.steps.append(plan)
        rows = []
        for part in plan.sequences:
            for offset, token in enumerate(part.token_ids):
                position = part.start + offset
                self.cache[part.block_table[position // self.block_size], position % self.block_size] = token
            stop = part.start + len(part.token_ids)
            context = self.cache[list(part.block_table)].flatten()[:stop].tolist()
            rows += [self._logits(context[: stop - n]) for n in reversed(range(part.logits))]
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size + PAD)

    def draft(self, outcome: Outcome) -> Tensor:
        """Logits for the token after next, which are right for about two contexts in three."""
        self._drafting = []
        for part, result in zip(self.steps[-1].sequences, outcome.sequences, strict=True):
            context = self.cache[list(part.block_table)].flatten()[: part.start + result.kept].tolist()
            if result.drafts:
                self._drafting.append(([*context, result.next_token], result.drafts))
        return self._draft_logits()

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """The same, one token further."""
        pairs = zip(self._drafting, tokens, strict=True)
        self._drafting = [([*context, token], left - 1) for (context, left), token in pairs if left > 1]
        return self._draft_logits()

    def _draft_logits(self) -> Tensor:
        contexts = [context for context, _ in self._drafting]
        rows = [self._logits(context if sum(context) % 3 else [*context, 7]) for context in contexts]
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size + PAD)

    def _logits(self, context: list[int]) -> Tensor:
        row = torch.full((self.vocab_size + PAD,), -10.0)
        row[self.vocab_size :] = 20.0
        row[next_token(context, self.vocab_size)] = 10.0
        return row


def next_token(context: list[int], vocab_size: int = 260) -> int:
    """What the echo model says after a context."""
    user, assistant = 258, 259
    mark = len(context) - 1 - context[::-1].index(assistant) if assistant in context else 0
    if user not in context[:mark]:
        return 2 + (sum(context) * 31 + len(context)) % (vocab_size - 4)
    start = mark - 1 - context[:mark][::-1].index(user)
    said = context[start + 1 : mark]
    spoken = len(context) - mark - 1
    return (*said, 1)[spoken % (len(said) + 1)]
