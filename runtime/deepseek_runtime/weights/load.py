"""From a checkpoint's folder to one rank's model: its own slices only, in the form that suits device and memory.

No rank waits for another while it reads: a slow disk on one node must not run into a collective's timeout on others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deepseek_runtime import sizing
from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.choose import choose_kernels
from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.model.config import ConfigError, ModelConfig, load_config
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.model.parallelize import Attention, ParallelError, Shard
from deepseek_runtime.model.sharding import mtp_tensors
from deepseek_runtime.weights.index import CheckpointError, Index, check, read_index, size_contradiction
from deepseek_runtime.weights.machine import free_memory, hardware_of
from deepseek_runtime.weights.read import Progress
from deepseek_runtime.weights.read_parts import Part, Target, plan_parts, read_weights
from deepseek_runtime.weights.residency import Choice, Situation, Wanted, choose

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """What loading took: bytes read and seconds of this rank, bytes in memory of it, and how FP8 is held and why."""

    read: int
    seconds: float
    held: int
    residency: Choice

    @property
    def gigabytes_per_second(self) -> float:
        return self.read / 1e9 / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        speed = f"{self.seconds:.2f} s ({self.gigabytes_per_second:.2f} GB/s)"
        return f"read {self.read / 1e9:.2f} GB in {speed}, {self.held / sizing.GIB:.2f} GiB in memory"


def load_model(  # noqa: PLR0913 (what distinguishes one rank's model from another's)
    path: Path,
    group: Group,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attention: Attention = "tensor",
    redundant_experts: int = 0,
    residency: Wanted = "auto",
    batch_invariant: bool = False,
    mtp: bool = True,
    config_file: Path | None = None,
    on_progress: Progress | None = None,
    on_loaded: Callable[[LoadSummary], None] | None = None,
) -> DeepSeekV3Model:
    """This rank's part of the model in `path`, computing in `dtype`; `on_progress` gets bytes read and to read.

    Without `mtp` the MTP layer is neither read nor held, nor has it a layer of the cache: nothing can draft.
    `config_file` is read in place of the checkpoint's `config.json`.
    Raises CheckpointError, before anything is read, with everything that is wrong with configuration and files.
    """
    free = _least_free(device, group)
    try:
        config, index = inspect(path, mtp=mtp, config_file=config_file)
        shard = Shard.of(config, group.rank, group.world_size, attention=attention, redundant_experts=redundant_experts)
    except (ConfigError, ParallelError) as error:
        raise CheckpointError(str(error)) from error
    kernels = choose_kernels(
        device, dtype, batch_invariant=batch_invariant, power_of_two_scales=config.power_of_two_scales
    )
    parts = plan_parts(shard, index)
    target = Target(device, dtype, fnuz=hardware_of(device).fnuz)
    layout = sizing.Layout(1, group.world_size, attention, redundant_experts, split_dense=False)
    choice = choose(residency, _situation(parts, config, target, kernels, free, layout))
    if group.rank == 0:
        logger.info("%s", choice.sentence)
        _say_what_is_odd(path, config, index, mtp=mtp, configured=load_config(path, config_file).num_mtp_layers)
    target = replace(target, keeps_fp8=choice.keeps_fp8)
    started = time.monotonic()
    loaded = read_weights(parts, shard, target, on_progress)
    summary = LoadSummary(loaded.bytes_read, time.monotonic() - started, _held(parts, target), choice)
    logger.info("%s", summary)
    if on_loaded:
        on_loaded(summary)
    return DeepSeekV3Model(shard, loaded.weights, group, kernels)


def _say_what_is_odd(path: Path, config: ModelConfig, index: Index, *, mtp: bool, configured: int) -> None:
    """Log what is no error and yet may surprise."""
    tensors = mtp_tensors(config, index)
    if tensors and not mtp:
        logger.info("the %d tensors of the MTP layer stay unread: nothing is to be drafted", len(tensors))
    if configured and not tensors:
        logger.warning("%s: config.json has an MTP layer and the files have none: nothing can be drafted", path)
    if sentence := size_contradiction(path, index):
        logger.warning("%s", sentence)


def inspect(path: Path, *, mtp: bool = True, config_file: Path | None = None) -> tuple[ModelConfig, Index]:
    """Configuration and tensors of a checkpoint that is complete and consistent.

    Where `mtp` is not wanted, or that layer was dropped by whoever converted the checkpoint, the configuration returned
    has none; tensors of it that are there anyway are no problem.
    """
    config = load_config(path, config_file)
    index = read_index(path)
    if not (mtp and mtp_tensors(config, index)):
        config = replace(config, num_mtp_layers=0)
    if problems := check(config, index):
        raise CheckpointError.listing(path, problems)
    return config, index


def _least_free(device: torch.device, group: Group) -> int:
    """The free bytes of the rank that has the least, so that all of them decide alike."""
    free = torch.zeros(group.world_size, dtype=torch.float64, device=device)
    free[group.rank] = free_memory(device)
    return int(group.all_reduce_sum(free).min())


def _situation(
    parts: list[Part], config: ModelConfig, target: Target, kernels: Kernels, free: int, layout: sizing.Layout
) -> Situation:
    token = config.num_cache_layers * config.cache_width * target.dtype.itemsize
    return Situation(
        kept=_held(parts, target),
        dense=_held(parts, replace(target, keeps_fp8=False)),
        cache=sizing.MIN_CACHE_TOKENS * token,
        free=free,
        compute_type=str(target.dtype).removeprefix("torch."),
        hardware=hardware_of(target.device),
        shape=config.shape,
        layout=layout,
        decodes_fp8=kernels.decodes_fp8,
    )


def _held(parts: list[Part], target: Target) -> int:
    return sum(target.bytes_held(part) for part in parts)
