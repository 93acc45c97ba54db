"""A model without weights that says what it is told to, so that a test can decide what an answer is made of."""

import torch
from torch import Tensor

from deepseek_runtime.text.tokenizer import Tokenizer
from fake_model import EchoExecutor


class ScriptedExecutor(EchoExecutor):
    """Says its script and ends. Where a grammar forbids that, it says whatever is allowed, and closes what it can.

    For one request at a time, though with any number of choices.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(num_blocks=256, block_size=16, vocab_size=tokenizer.size)
        self._tokenizer = tokenizer
        self._script: list[int] = []
        self._prompt_length: int | None = None
        self._closing = [id_ for text in ('"', "}", "]") for id_ in tokenizer.encode(text)]

    def say(self, text: str) -> None:
        """What the next answers are made of; markers of the dialect become their tokens."""
        self._script = [*self._tokenizer.encode(text), min(self._tokenizer.stop_ids)]
        self._prompt_length = None

    def _logits(self, context: list[int]) -> Tensor:
        if self._prompt_length is None:
            self._prompt_length = len(context)
        said = len(context) - self._prompt_length
        row = torch.full((self.vocab_size,), -10.0)
        row[self._closing] = 0.0
        row[self._script[min(said, len(self._script) - 1)]] = 10.0
        return row
