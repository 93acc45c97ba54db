"""Train the tutor from a seed and write its checkpoint.

    python -m tutor_training.train --out runtime/deepseek_runtime/tutor

The last fifth of the steps sees the weights as the checkpoint will store them, rounded to FP8 blocks, so that
quantisation costs no accuracy.
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from tutor_training.export import export, round_to_fp8
from tutor_training.network import Network
from tutor_training.problems import Dialogue, held_out_problems, training_dialogues
from tutor_training.vocabulary import encode_dialogue, learn_tokenizer

IGNORED = -100
_PADDING = 2  # id of the padding token, as in the real tokenizer
LONGEST = 320
_BUCKETS = 16


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, so that the checkpoint can name it."""

    seed: int = 1
    steps: int = 2_800
    tokens_per_step: int = 4_096
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warmup: int = 100
    mtp_weight: float = 0.3
    rounded_share: float = 0.2
    balance_speed: float = 1e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Batch:
    """Padded sequences [B, L] and, per position, the next token to learn or IGNORED."""

    ids: Tensor
    targets: Tensor


def pad(rows: list[tuple[list[int], list[bool]]]) -> Batch:
    """Pad on the right: under a causal mask no real token ever sees the padding."""
    longest = max(len(ids) for ids, _ in rows)
    padded = torch.full((len(rows), longest), _PADDING)
    targets = torch.full((len(rows), longest), IGNORED)
    for row, (ids, learned) in enumerate(rows):
        tokens = torch.tensor(ids)
        padded[row, : len(ids)] = tokens
        wanted = torch.where(torch.tensor(learned), tokens, IGNORED)
        targets[row, : len(ids) - 1] = wanted[1:]
    return Batch(padded, targets)


def batches(tokenizer: Tokenizer, settings: Settings) -> Iterator[Batch]:
    """Batches of about `tokens_per_step` tokens, of dialogues of similar length so that little is padding."""
    encoded = (encode_dialogue(tokenizer, d) for d in training_dialogues(settings.seed))
    fitting = (row for row in encoded if len(row[0]) <= LONGEST)
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        pool = list(itertools.islice(fitting, _BUCKETS * settings.tokens_per_step // 100))
        pool.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = []
        group: list[tuple[list[int], list[bool]]] = []
        for row in pool:
            if group and (len(group) + 1) * len(row[0]) > settings.tokens_per_step:
                groups.append(group)
                group = []
            group.append(row)
        for index in torch.randperm(len(groups), generator=generator).tolist():
            yield pad(groups[index])


def rate_factor(step: int, settings: Settings) -> float:
    """Linear warm-up to 1, then a cosine down to 0."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def losses(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token and of the MTP layer's token after next."""
    network.rounding.dtype = torch.bfloat16
    main, draft = network(batch.ids)
    next_loss = F.cross_entropy(main.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
    after = batch.targets[:, 1:].flatten()
    return next_loss, F.cross_entropy(draft.float().flatten(0, 1), after, ignore_index=IGNORED)


@torch.no_grad()
def exactness(network: Network, batch: Batch) -> tuple[float, float]:
    """Share of dialogues whose every token is the argmax (what greedy decoding would write), and of right drafts."""
    network.rounding.dtype = torch.float32
    main, draft = network(batch.ids)
    known = batch.targets != IGNORED
    right = ((main.argmax(-1) == batch.targets) | ~known).all(dim=1).float().mean()
    after = batch.targets[:, 1:]
    return right.item(), (draft.argmax(-1) == after)[after != IGNORED].float().mean().item()


def _optimizers(network: Network, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embedding, head, routers, norms (as its authors advise)."""
    inside = [p for n, p in network.named_parameters() if p.dim() == 2 and ".layers." in n and "gate.weight" not in n]
    chosen = {id(p) for p in inside}
    others = [p for p in network.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(inside, lr=settings.muon_rate, weight_decay=settings.weight_decay)
    adam = torch.optim.AdamW(others, lr=settings.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [muon, adam]


def train(settings: Settings, tokenizer: Tokenizer, save: Callable[[Network], None], log_every: int = 250) -> None:
    """Train; every `log_every` steps and at the end log the held-out accuracy and `save` what there is."""
    torch.manual_seed(settings.seed)
    network = Network(LONGEST)
    optimizers = _optimizers(network, settings)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    held_out = _held_out_batch(tokenizer, 200)
    started = time.monotonic()
    for step, batch in enumerate(itertools.islice(batches(tokenizer, settings), settings.steps)):
        if step == int(settings.steps * (1 - settings.rounded_share)):
            network.rounding.function = round_to_fp8
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate_factor(step, settings)
        main, draft = losses(network, batch)
        network.zero_grad(set_to_none=True)
        torch.autograd.backward(main + settings.mtp_weight * draft)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for router in network.routers():
            router.balance(settings.balance_speed * (1 - step / settings.steps))
        if step % log_every == log_every - 1 or step == settings.steps - 1:
            right, drafted = exactness(network, held_out)
            _log(
                step=step + 1,
                loss=main.item(),
                mtp_loss=draft.item(),
                held_out=right,
                drafts=drafted,
                wall_s=time.monotonic() - started,
                cpu_s=time.process_time(),
            )
            save(network)


def _held_out_batch(tokenizer: Tokenizer, count: int) -> Batch:
    dialogues = [Dialogue("", ((p.question, p.solution),)) for p in held_out_problems(count, seed=7)]
    return pad([encode_dialogue(tokenizer, d) for d in dialogues])


def _log(**values: float) -> None:
    sys.stdout.write(json.dumps({k: round(v, 4) for k, v in values.items()}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Parse the command line, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--threads", type=int, default=1, help="more than one does not pay at this size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Settings(seed=arguments.seed, steps=arguments.steps)
    tokenizer = learn_tokenizer(settings.seed)
    train(settings, tokenizer, lambda network: export(network, tokenizer, arguments.out))


if __name__ == "__main__":
    main()
