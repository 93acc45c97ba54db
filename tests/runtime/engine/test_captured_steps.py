"""Serving with captured decode steps. Running a step again on its buffers stands in for a graph: both read the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.build import Limits, make_engine, make_rank, prepare_steps
from deepseek_runtime.engine.executor import ModelExecutor
from deepseek_runtime.engine.runner import Runner
from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.engine.scheduler import Scheduler
from deepseek_runtime.engine.sequence import Sequence
from deepseek_runtime.engine.step import StepPlan
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.graphs import DecodeGraphs, shapes
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.serve import parse
from deepseek_runtime.server.local import Local
from deepseek_runtime.settings import Settings, StartupError
from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer
from deepseek_runtime.weights.load import load_model
from fake_model import write_tokenizer
from tiny_checkpoint import v3_config, write_checkpoint

BLOCK = 4
QUESTIONS = ["What is 1 + 1?", "Who are you?", "Hello", "What is 1 + 1? And 2 + 2?", "What is 1 + 2?"]


class Replays:
    """A capture that runs functions again, into the same tensor, and keeps the number of rows of each replay."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = function()
        self.captured.append(len(output))

        def replay() -> None:
            self.replayed.append(len(output))
            output.copy_(function())

        return replay, output


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = write_tokenizer(tmp_path_factory.mktemp("tiny"))
    write_checkpoint(folder, v3_config(vocab_size=272, max_position_embeddings=256))
    return Settings(model=folder, served_model_name=("tiny",), device="cpu", block_size=BLOCK, max_running=3)


def load(folder: Path, *, mtp: bool = True) -> DeepSeekV3Model:
    return load_model(folder, Group(), device=torch.device("cpu"), dtype=torch.float32, mtp=mtp)


def answers(settings: Settings, capture: Replays | None) -> list[str]:
    """What a server with these settings says to all questions at once."""
    group, limits = Group(), Limits(kv_tokens=512, max_model_len=128)
    model = load(settings.model, mtp=settings.speculative_tokens != 0)
    loaded = make_rank(settings, group, model, limits, capture)
    engine = make_engine(settings, loaded, group.device, on_failure=pytest.fail)
    engine.start()
    tokenizer = Tokenizer(settings.model)
    local = Local(
        engine=engine, tokenizer=tokenizer, template=ChatTemplate(settings.model, tokenizer), max_model_len=128
    )
    jobs = [local.job([{"role": "user", "content": question}], max_tokens=20) for question in QUESTIONS]
    texts = [""] * len(jobs)
    for piece in local.run(jobs):
        texts[piece.choice] += piece.text
    assert engine.stop(10)
    return texts


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_captured_steps_change_no_text(settings: Settings, drafts: int) -> None:
    replays, told = Replays(), replace(settings, speculative_tokens=drafts)
    assert answers(told, replays) == answers(told, None)
    assert sorted(replays.captured) == sorted(shape.tokens for shape in shapes(3, drafts))
    assert 4 * (1 + drafts) in replays.replayed, "three sequences are padded to four"


class Watched(ModelExecutor):
    """Checks after each step that the cache changed only where the step's tokens lie, or in the scratch block."""

    padded = 0

    def run(self, plan: StepPlan) -> Tensor:
        scratch = self._cache.num_blocks - 1
        scratch_slots = set(range(scratch * BLOCK, (scratch + 1) * BLOCK))
        self._cache.values[:, sorted(scratch_slots)] = 7
        before = self._cache.values.clone()
        logits = super().run(plan)
        rows = (self._cache.values != before).any(dim=-1)
        written = set(rows.any(dim=0).nonzero().flatten().tolist())
        assert written - scratch_slots <= self._slots(plan)
        assert all(scratch not in part.block_table for part in plan.sequences)
        self.padded += bool(written & scratch_slots)
        return logits

    def _slots(self, plan: StepPlan) -> set[int]:
        return {
            part.block_table[position // BLOCK] * BLOCK + position % BLOCK
            for part in plan.sequences
            for position in range(part.start, part.stop)
        }


@pytest.fixture(scope="module")
def model(settings: Settings) -> DeepSeekV3Model:
    return load(settings.model)


def generated(model: DeepSeekV3Model, drafts: int, *, blocks: int, captured: bool) -> list[list[int]]:
    """Tokens of five sequences behind equal beginnings, over so few blocks that some give theirs back meanwhile."""
    cache = LatentCache.create(model.config, blocks + 1, BLOCK, model.device, model.dtype)
    graphs = DecodeGraphs(model, cache, most_blocks=blocks, scratch_block=blocks)
    if captured:
        graphs.capture(shapes(5, drafts), Replays())
    executor = Watched(model, cache, Group(), forward=graphs.forward)
    runner = Runner(executor, Group(), vocab_size=272, speculative_tokens=drafts)
    scheduler = Scheduler(BlockManager(blocks, BLOCK), token_budget=24, max_running=5)
    prompts = [tuple(range(20, 20 + 7 * n)) for n in range(1, 6)]
    sequences = [
        Sequence(n, prompt, SamplingParams(max_tokens=25, temperature=0.0)) for n, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.has_work:
        slots = scheduler.schedule()
        sampled = runner.lead(slots)
        scheduler.commit(slots, {id_: [token.token for token in tokens] for id_, tokens in sampled.items()})
        runner.draft(slots, sampled)
    assert scheduler.preemptions > 0
    assert bool(executor.padded) is captured
    return [sequence.generated for sequence in sequences]


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_padding_is_written_to_a_block_that_no_sequence_ever_gets(model: DeepSeekV3Model, drafts: int) -> None:
    tokens = [generated(model, drafts, blocks=30, captured=captured) for captured in (False, True)]
    assert tokens[0] == tokens[1]


def test_steps_of_every_size_run_before_the_cache_is_made(
    model: DeepSeekV3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, lengths = model.forward, []

    def watched(batch: StepBatch, cache: LatentCache) -> Tensor:
        lengths.append(len(batch.token_ids))
        return forward(batch, cache)

    monkeypatch.setattr(model, "forward", watched)
    prepare_steps(model, 70, block_size=16)
    assert lengths == [1, 2, 4, 8, 16, 32, 64, 70]


def test_a_step_too_large_for_the_memory_is_refused_with_its_size(
    model: DeepSeekV3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(batch: StepBatch, cache: LatentCache) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(StartupError, match="a step of 70 tokens: lower --max-batch-tokens"):
        prepare_steps(model, 70, block_size=16)


def test_a_flag_switches_graphs_off() -> None:
    assert [parse(["--model", "tutor", *flag]).graphs for flag in ([], ["--no-graphs"])] == [True, False]


def test_a_capture_that_fails_names_the_flag_that_does_without(settings: Settings, model: DeepSeekV3Model) -> None:
    def failing(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nwith a trace")

    with pytest.raises(
        StartupError, match=r"--no-graphs does without: operation not permitted when stream is capturing$"
    ):
        make_rank(settings, Group(), model, Limits(kv_tokens=64, max_model_len=64), failing)
