"""Case 14: speculation changes how fast tokens come, never which; the MTP layer drafts well only if wired right."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.executor import ModelExecutor
from deepseek_runtime.engine.runner import Runner
from deepseek_runtime.engine.sampling import Sampled, SamplingParams
from deepseek_runtime.engine.scheduler import Scheduler
from deepseek_runtime.engine.sequence import Sequence
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.server.local import open_local
from deepseek_runtime.settings import Settings, checkpoint_folder
from deepseek_runtime.weights.load import load_model
from tiny_checkpoint import Config, Tensors, random_tensors, v3_config, write_checkpoint, write_tensors

CYCLE = 64
"""Tokens of the constructed model's language, each followed by a certain other one."""


@dataclass
class Rig:
    """An engine without its thread: sequences in, tokens out, and everything in reach."""

    model: DeepSeekV3Model
    drafts: int
    budget: int = 64
    blocks: int = 64

    def __post_init__(self) -> None:
        size = 16
        self.cache = LatentCache.create(self.model.config, self.blocks, size, self.model.device, self.model.dtype)
        self.pool = BlockManager(self.blocks, size)
        self.scheduler = Scheduler(self.pool, token_budget=self.budget, max_running=5)
        executor = ModelExecutor(self.model, self.cache, Group())
        self.runner = Runner(executor, Group(), vocab_size=200, speculative_tokens=self.drafts)
        self.said: dict[int, list[Sampled]] = {}

    def run(self, prompts: list[list[int]], **params: Any) -> list[list[int]]:
        """The tokens behind each prompt; what was reported of them is left in `said`, by the prompt's number."""
        options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.0, **params}
        sequences = [
            Sequence(number, tuple(prompt), SamplingParams(**options, seed=number))
            for number, prompt in enumerate(prompts)
        ]
        for sequence in sequences:
            self.scheduler.add(sequence)
        while self.scheduler.has_work:
            self._step()
        return [sequence.generated for sequence in sequences]

    @property
    def acceptance(self) -> list[float]:
        """Share of drafts that held, by position."""
        counts = self.runner.speculation
        return [accepted / drafted for accepted, drafted in zip(counts.accepted, counts.drafted, strict=True)]

    def _step(self) -> None:
        slots = self.scheduler.schedule()
        sampled = self.runner.lead(slots)
        self.scheduler.commit(slots, {id_: [token.token for token in tokens] for id_, tokens in sampled.items()})
        for id_, tokens in sampled.items():
            self.said.setdefault(id_, []).extend(tokens)
        self.runner.draft(slots, sampled)


def load(folder: Path) -> DeepSeekV3Model:
    return load_model(folder, Group(), device=torch.device("cpu"), dtype=torch.float32)


def cycling_tensors(config: Config, wiring: str) -> Tensors:
    """A model whose next token is a function of the current one, and an MTP layer that can know the one after it.

    Attention and experts add nothing. `wiring` says what the MTP layer's projection reads of its inputs: as it should,
    the `embedding`, or the `hidden` state after the final norm; or as in two known bugs, the halves `swapped`, or the
    state `before` the final norm, which flips signs.
    """
    tensors = random_tensors(config, seed=5)
    mtp, hidden = f"model.layers.{config['num_hidden_layers']}", config["hidden_size"]
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = torch.zeros_like(tensor)
        elif name.endswith(("norm.weight", "layernorm.weight")):
            tensors[name] = torch.ones_like(tensor)
    signs = torch.randn(hidden, generator=torch.Generator().manual_seed(1)).sign()
    tensors["model.norm.weight"], tensors[f"{mtp}.shared_head.norm.weight"] = signs.bfloat16(), signs.bfloat16()
    embedding = torch.nn.functional.normalize(tensors["model.embed_tokens.weight"].float()[:CYCLE], dim=-1)
    following = embedding.roll(-1, dims=0)
    tensors["lm_head.weight"][:CYCLE] = (embedding * signs).roll(1, dims=0).bfloat16() * 10
    tensors["lm_head.weight"][CYCLE:] = 0
    read, ignored = torch.eye(hidden), torch.zeros(hidden, hidden)
    state = embedding if wiring == "before" else embedding * signs
    predicts = (torch.linalg.pinv(state) @ following).T
    halves = {"embedding": (read, ignored), "swapped": (ignored, read)}.get(wiring, (ignored, predicts))
    tensors[f"{mtp}.eh_proj.weight"] = torch.cat(halves, dim=1).bfloat16()
    return tensors


@pytest.fixture(scope="module")
def cycling(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DeepSeekV3Model]:
    """The constructed model by its MTP layer's wiring."""
    models: dict[str, DeepSeekV3Model] = {}

    def make(wiring: str) -> DeepSeekV3Model:
        if wiring not in models:
            folder, config = tmp_path_factory.mktemp(wiring), v3_config()
            write_tensors(folder, config, cycling_tensors(config, wiring))
            models[wiring] = load(folder)
        return models[wiring]

    return make


@pytest.fixture(scope="module")
def chaotic(tmp_path_factory: pytest.TempPathFactory) -> DeepSeekV3Model:
    """A random model, whose drafts are nearly always wrong."""
    folder = tmp_path_factory.mktemp("chaotic")
    write_checkpoint(folder, v3_config())
    return load(folder)


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, CYCLE, (9 + 14 * n,), generator=generator).tolist() for n in range(count)]


def cycle_from(token: int, count: int) -> list[int]:
    return [(token + 1 + i) % CYCLE for i in range(count)]


@pytest.mark.parametrize("wiring", ["embedding", "hidden"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_a_layer_that_can_know_the_next_token_is_always_right(
    cycling: Callable[[str], DeepSeekV3Model], wiring: str, batch: int, drafts: int
) -> None:
    asked = prompts(batch)
    rig = Rig(cycling(wiring), drafts, budget=40)
    assert rig.run(asked, max_tokens=200) == [cycle_from(prompt[-1], 200) for prompt in asked]
    assert rig.acceptance == [1.0] * drafts
    counts = rig.runner.speculation
    assert counts.tokens == 200 * batch
    assert counts.tokens / counts.forwards > 0.95 * (1 + drafts)


@pytest.mark.parametrize("wiring", ["embedding", "hidden"])
def test_it_is_right_too_behind_chunks_and_cached_prefixes(
    cycling: Callable[[str], DeepSeekV3Model], wiring: str
) -> None:
    asked = prompts(5)
    rig = Rig(cycling(wiring), drafts=1, budget=7)
    expected = [cycle_from(prompt[-1], 60) for prompt in asked]
    assert rig.run(asked) == expected
    assert rig.pool.hits == 0
    assert rig.run(asked) == expected
    assert rig.pool.hits >= 16
    assert rig.acceptance == [1.0]


@pytest.mark.parametrize("wiring", ["swapped", "before"])
def test_acceptance_falls_where_the_layer_is_wired_otherwise(
    cycling: Callable[[str], DeepSeekV3Model], wiring: str
) -> None:
    rig = Rig(cycling(wiring), drafts=1)
    assert rig.run(prompts(2)) == [cycle_from(prompt[-1], 60) for prompt in prompts(2)]
    assert rig.acceptance[0] < 0.3


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 1}]
)
@pytest.mark.parametrize("drafts", [1, 3])
def test_wrong_drafts_change_no_token(chaotic: DeepSeekV3Model, drafts: int, params: dict[str, Any]) -> None:
    plain, speculating = Rig(chaotic, 0), Rig(chaotic, drafts)
    assert speculating.run(prompts(5), **params) == plain.run(prompts(5), **params)
    assert speculating.acceptance[0] < 0.5


def test_preemption_loses_no_token_while_drafting(chaotic: DeepSeekV3Model) -> None:
    crowded = Rig(chaotic, drafts=2, blocks=14)
    assert crowded.run(prompts(5)) == Rig(chaotic, 0).run(prompts(5))
    assert crowded.scheduler.preemptions > 0
    assert crowded.pool.free == crowded.pool.num_blocks


def test_log_probabilities_are_the_targets_with_and_without_drafts(cycling: Callable[[str], DeepSeekV3Model]) -> None:
    model = cycling("hidden")
    rigs = [Rig(model, drafts) for drafts in (0, 1, 3)]
    for rig in rigs:
        rig.run(prompts(2), logprobs=2)
    for number in range(2):
        plain, *others = [_logprobs(rig.said[number]) for rig in rigs]
        assert len(plain) == 60
        for other in others:
            torch.testing.assert_close(other, plain, atol=1e-4, rtol=0)


def _logprobs(said: list[Sampled]) -> Tensor:
    return torch.tensor([[token.logprob, *(value for _, value in token.alternatives)] for token in said])


def test_rejected_drafts_leave_no_trace_in_any_layers_cache(chaotic: DeepSeekV3Model) -> None:
    rig = Rig(chaotic, drafts=3)
    prompt = prompts(2)[1]
    tokens = prompt + rig.run([prompt])[0]
    spoken = Sequence(0, tuple(tokens), SamplingParams(max_tokens=1))
    blocks = rig.pool.match(spoken)
    assert len(blocks) == (len(tokens) - 1) // 16
    fresh = Rig(chaotic, drafts=1)
    fresh.run([tokens], max_tokens=1)
    expected = fresh.pool.match(spoken)
    for layer in range(rig.cache.num_layers):
        got, want = (r.cache.layer(layer).view(r.blocks, 16, -1)[b] for r, b in ((rig, blocks), (fresh, expected)))
        torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


def test_a_conversation_goes_on_as_if_it_were_read_for_the_first_time(chaotic: DeepSeekV3Model) -> None:
    rig, fresh = Rig(chaotic, drafts=3), Rig(chaotic, drafts=0)
    prompt = prompts(2)[1]
    longer = prompt + rig.run([prompt])[0] + [5, 6, 7]
    rig.said.clear()
    assert rig.run([longer], logprobs=3) == fresh.run([longer], logprobs=3)
    assert rig.pool.hits >= 80
    torch.testing.assert_close(_logprobs(rig.said[0]), _logprobs(fresh.said[0]), atol=1e-3, rtol=0)


QUESTIONS = ["What is 792 minus 297?", "What is 12 times 34?", "What is 123 plus 989?"]


def tutor_answers(drafts: int) -> tuple[list[str], float]:
    """What the shipped model says, and tokens per forward pass."""
    settings = Settings(
        model=checkpoint_folder("tutor"),
        served_model_name=("tutor",),
        device="cpu",
        kv_tokens=512,
        speculative_tokens=drafts,
    )
    local = open_local(settings, lambda _: None)
    answers = ["".join(local.answer([{"role": "user", "content": question}])) for question in QUESTIONS]
    counts = local.engine.stats().speculation
    assert local.engine.stop(10)
    return answers, counts.tokens / counts.forwards


def test_the_tutor_says_the_same_in_far_fewer_passes() -> None:
    answers, single = tutor_answers(0)
    assert single == 1
    assert "495" in answers[0]
    for drafts, least in ((1, 1.4), (3, 2.0)):
        drafted, per_pass = tutor_answers(drafts)
        assert drafted == answers
        assert per_pass >= least
