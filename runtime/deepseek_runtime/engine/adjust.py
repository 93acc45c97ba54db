"""What a request changes in its logits before a token is chosen: grammar, bias, penalties, least length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.sequence import Sequence


class Context:
    """What stands before a token that is to be chosen: a sequence, and drafts taken for granted behind it."""

    def __init__(self, sequence: Sequence, ahead: Rows[int] = ()) -> None:
        self.sequence = sequence
        self._ahead = ahead

    @property
    def params(self) -> SamplingParams:
        return self.sequence.params

    @property
    def index(self) -> int:
        """Tokens generated before this one."""
        return len(self.sequence.generated) + len(self._ahead)

    @property
    def generated(self) -> list[int]:
        """Those tokens."""
        return [*self.sequence.generated, *self._ahead]

    @property
    def allowed(self) -> NDArray[np.bool_] | None:
        """What the request's grammar lets follow; None for everything, also where it fails."""
        return self._judgement[0]

    @property
    def fault(self) -> Exception | None:
        """What the request's grammar raised instead of an answer."""
        return self._judgement[1]

    @cached_property
    def _judgement(self) -> tuple[NDArray[np.bool_] | None, Exception | None]:
        try:
            return _checked(self.params.mask(self.generated)) if self.params.mask else None, None
        except Exception as error:
            return None, error

    def permits(self, token: int) -> bool:
        """Whether the grammar lets a token follow."""
        return self.allowed is None or (token < len(self.allowed) and bool(self.allowed[token]))

    @property
    def adjusts(self) -> bool:
        """Whether the choice is made by anything else than the model's own logits."""
        params = self.params
        return bool(params.mask is not None or params.logit_bias or params.penalised or self.index < params.min_tokens)


def _checked(allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """A grammar's answer, or TypeError for one that is no row of truth values."""
    if allowed is None or (isinstance(allowed, np.ndarray) and allowed.dtype == np.bool_ and allowed.ndim == 1):
        return allowed
    got = f"{allowed.dtype} of shape {allowed.shape}" if isinstance(allowed, np.ndarray) else type(allowed).__name__
    raise TypeError(f"it must say which tokens may come as a row of bool, not {got}")


def adjust(logits: Tensor, contexts: Rows[Context]) -> Tensor:
    """Logits [N, V] as the requests want them; the same tensor where none wants a change.

    Whatever a request asks for, each of its tokens that may come has a finite score, and at least one may.
    """
    rows = [row for row, context in enumerate(contexts) if context.adjusts]
    if not rows:
        return logits
    scores = logits.clone()
    for row in rows:
        _adjust_row(scores[row], contexts[row])
    return scores


def _adjust_row(row_V: Tensor, context: Context) -> None:
    params = context.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row_V.device)
        row_V[ids] += torch.tensor(list(params.logit_bias.values()), dtype=row_V.dtype, device=row_V.device)
    if params.penalised:
        _penalise(row_V, context)
    largest = torch.finfo(row_V.dtype).max
    row_V.clamp_(-largest, largest)
    if (allowed := _allowed(context, len(row_V))) is not None:
        row_V.masked_fill_(~torch.from_numpy(allowed).to(row_V.device), -torch.inf)


def _allowed(context: Context, size: int) -> NDArray[np.bool_] | None:
    """Which of `size` ids may come, by grammar and least length together. At least one always may."""
    params = context.params
    ends = [id_ for id_ in params.stop_token_ids if id_ < size]
    too_short = context.index < params.min_tokens
    if context.allowed is None and not too_short:
        return None
    allowed = np.ones(size, dtype=np.bool_)
    if context.allowed is not None:
        allowed[:] = False
        allowed[: len(context.allowed)] = context.allowed[:size]
        if not allowed.any():
            allowed[ends or slice(None)] = True
    longer = allowed.copy()
    longer[ends] = False
    return longer if too_short and longer.any() else allowed


def _penalise(row_V: Tensor, context: Context) -> None:
    """Repetition counts prompt and output and scales; presence and frequency count the output and subtract."""
    params, generated = context.params, context.generated
    seen = torch.tensor(sorted({*context.sequence.prompt, *generated}), device=row_V.device)
    values, factor = row_V[seen], params.repetition_penalty
    row_V[seen] = torch.where(values > 0, values / factor, values * factor)
    if counts := Counter(generated):
        tokens = torch.tensor(list(counts), device=row_V.device)
        times = torch.tensor(list(counts.values()), dtype=row_V.dtype, device=row_V.device)
        row_V[tokens] -= params.presence_penalty + params.frequency_penalty * times
