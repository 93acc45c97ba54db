"""From settings and a group to a rank that runs steps: weights, cache, runner, and on rank 0 the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from deepseek_runtime.dist.group import Group
from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.engine import Engine
from deepseek_runtime.engine.executor import Forward, ModelExecutor
from deepseek_runtime.engine.runner import Runner
from deepseek_runtime.engine.scheduler import Scheduler
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.config import ModelConfig
from deepseek_runtime.model.graphs import Capture, DecodeGraphs, Shape, gpu_capture, shapes, warm_up, why_eager
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.settings import Settings, StartupError
from deepseek_runtime.text.tokenizer import Tokenizer
from deepseek_runtime.weights.load import inspect, load_model

logger = logging.getLogger(__name__)

LOAD_TIMEOUT = 4 * 3600.0
"""Seconds that ranks wait for the slowest one; the StatefulSet's startup probe ends it earlier where that is wanted."""

REBALANCE_STEPS = 1000
"""Steps between two looks at how evenly experts are chosen, with redundant experts: traffic changes in minutes."""

CPU_CACHE_BYTES = 2**28
GPU_CACHE_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits: tokens of a pool of the cache, and of one prompt with its answer."""

    kv_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """One rank, ready to run steps. There is a pool of blocks for each rank that has sequences of its own, or one."""

    runner: Runner
    pools: tuple[BlockManager, ...]
    limits: Limits


def load_rank(
    settings: Settings,
    group: Group,
    report: Callable[[float], None],
    count: Callable[[int], None] = lambda _: None,
) -> Loaded:
    """Load this rank's weights, meet the others, and make a cache. No collective is pending while anyone loads.

    `report` gets the share of this rank's weights that is loaded, 0 to 1, and `count` their bytes.
    """

    def on_progress(done: int, total: int) -> None:
        report(done / max(total, 1))
        count(done)
        group.report_progress(done, total)

    if settings.speculative_tokens:
        _require_mtp(settings)
    model = load_model(
        settings.model,
        group,
        device=group.device,
        dtype=_dtype(settings.dtype, group.device),
        attention=settings.attention,
        redundant_experts=settings.redundant_experts,
        residency=settings.weights,
        batch_invariant=settings.batch_invariant,
        mtp=settings.speculative_tokens != 0,
        config_file=settings.config,
        on_progress=on_progress,
    )
    group.barrier("loaded", LOAD_TIMEOUT, on_wait=logger.info)
    if group.device.type != "cpu":
        prepare_steps(model, _token_budget(settings, group.device), settings.block_size)
    limits = _limits(settings, model.config, model.dtype, group)
    return make_rank(settings, group, model, limits, gpu_capture() if _captures(settings, group, model) else None)


def prepare_steps(model: DeepSeekV3Model, most_tokens: int, block_size: int) -> None:
    """Compile every kernel, and have torch set aside what the largest step needs, before the cache takes the rest."""
    cache = LatentCache.create(model.config, -(-most_tokens // block_size), block_size, model.device, model.dtype)
    try:
        warm_up(model, cache, most_tokens)
    except torch.OutOfMemoryError as error:
        raise StartupError(
            f"beside the weights no memory is left for a step of {most_tokens} tokens: lower --max-batch-tokens"
        ) from error
    model.forget_choices()


def make_rank(
    settings: Settings, group: Group, model: DeepSeekV3Model, limits: Limits, capture: Capture | None
) -> Loaded:
    """A rank with its cache. With `capture` decode steps are captured, padded in a last block that no pool knows."""
    size, data_parallel = settings.block_size, settings.attention == "data"
    blocks = limits.kv_tokens // size
    pools = tuple(
        BlockManager(blocks, size, prefix_caching=settings.prefix_caching)
        for _ in range(group.world_size if data_parallel else 1)
    )
    cache = LatentCache.create(model.config, blocks + (capture is not None), size, group.device, model.dtype)
    drafts = _default_drafts(model.config) if settings.speculative_tokens is None else settings.speculative_tokens
    steps = shapes(settings.max_running, drafts)
    forward = _capture_steps(steps, model, cache, limits, capture) if capture else None
    executor = ModelExecutor(model, cache, group, data_parallel=data_parallel, forward=forward)
    runner = Runner(executor, group, vocab_size=Tokenizer(settings.model).size, speculative_tokens=drafts)
    return Loaded(runner, pools, limits)


def make_engine(settings: Settings, loaded: Loaded, device: torch.device, on_failure: Callable[[str], None]) -> Engine:
    """Rank 0's engine, not started yet."""
    budget = _token_budget(settings, device)
    scheduler = Scheduler(*loaded.pools, token_budget=budget, max_running=settings.max_running)
    limits, pools = loaded.limits, len(loaded.pools)
    whole = f"{pools} × {limits.kv_tokens}" if pools > 1 else str(limits.kv_tokens)
    logger.info("cache for %s tokens, prompt and answer up to %d", whole, limits.max_model_len)
    return Engine(
        loaded.runner,
        scheduler,
        max_queued=settings.max_queued,
        on_failure=on_failure,
        keep_alive=settings.keep_alive,
        rebalance_every=REBALANCE_STEPS if settings.redundant_experts else 0,
    )


def _capture_steps(
    steps: list[Shape], model: DeepSeekV3Model, cache: LatentCache, limits: Limits, capture: Capture
) -> Forward:
    """Capture decode steps of some shapes, for sequences of any length that is served."""
    most_blocks = -(-limits.max_model_len // cache.block_size)
    graphs = DecodeGraphs(model, cache, most_blocks, scratch_block=cache.num_blocks - 1)
    try:
        graphs.capture(steps, capture)
    except RuntimeError as error:
        cause = str(error).partition("\n")[0]
        raise StartupError(f"decode steps cannot be captured in graphs, --no-graphs does without: {cause}") from error
    logger.info("captured %d shapes of decode steps, up to %d sequences", len(steps), steps[-1].sequences)
    return graphs.forward


def _captures(settings: Settings, group: Group, model: DeepSeekV3Model) -> bool:
    """Whether decode steps are captured; the log says why not."""
    on_gpu = group.device.type != "cpu"
    reason = why_eager(
        wanted=settings.graphs,
        device=group.device,
        triton=on_gpu and _has_triton(model.kernels),
        model=model.capturable,
        sums=group.world_size == 1 or "cuda:nccl" in dist.get_backend_config(),
    )
    if reason and on_gpu and group.rank == 0:
        logger.info("decode steps are not captured in graphs: %s", reason)
    return reason is None


def _has_triton(kernels: Kernels) -> bool:
    try:
        from deepseek_runtime.kernels.triton.kernels import TritonKernels
    except ModuleNotFoundError:
        return False
    return isinstance(kernels, TritonKernels)


def _default_drafts(config: ModelConfig) -> int:
    return 1 if config.num_mtp_layers else 0


def _require_mtp(settings: Settings) -> None:
    """Refuse to speculate without an MTP layer, before gigabytes are read."""
    config, _ = inspect(settings.model, config_file=settings.config)
    if not config.num_mtp_layers:
        raise StartupError(
            f"--speculative-tokens {settings.speculative_tokens} needs an MTP layer to draft with, "
            f"and the checkpoint in {settings.model} has none: use 0, or leave the flag out"
        )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """A type by its name; `auto` is exact on a CPU and what accelerators are fastest with elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _token_budget(settings: Settings, device: torch.device) -> int:
    """Tokens of a step: enough to keep the device busy, few enough that decoding never waits long for a prompt."""
    usual = 512 if device.type == "cpu" else 8192
    return max(settings.max_batch_tokens or usual, settings.max_running)


def _limits(settings: Settings, config: ModelConfig, dtype: torch.dtype, group: Group) -> Limits:
    """Cache and context lengths, equal on all ranks: the rank with the least memory decides."""
    wanted = settings.max_model_len or config.max_position
    if wanted > config.max_position:
        raise StartupError(f"--max-model-len {wanted} is more than the checkpoint's {config.max_position} positions")
    own = settings.kv_tokens or _free_tokens(config, dtype, group.device, wanted)
    tokens = _least(own, group) // settings.block_size * settings.block_size
    if settings.max_model_len and tokens < wanted:
        raise StartupError(
            f"--max-model-len {wanted} does not fit into a cache of {tokens} tokens: lower it or raise --kv-tokens"
        )
    if not tokens:
        raise StartupError(f"a cache of {own} tokens has no block of {settings.block_size}: raise --kv-tokens")
    return Limits(tokens, min(wanted, tokens))


def _free_tokens(config: ModelConfig, dtype: torch.dtype, device: torch.device, wanted: int) -> int:
    """Tokens that the free memory of a GPU holds; on a CPU room for four full contexts within a fixed bound."""
    per_token = config.num_cache_layers * config.cache_width * dtype.itemsize
    if device.type == "cpu":
        return min(4 * wanted, CPU_CACHE_BYTES // per_token)
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * GPU_CACHE_SHARE) // per_token


def _least(own: int, group: Group) -> int:
    """The smallest of all ranks' numbers."""
    numbers = torch.zeros(group.world_size, dtype=torch.float64, device=group.device)
    numbers[group.rank] = own
    return int(group.all_reduce_sum(numbers).min())
