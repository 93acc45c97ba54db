"""What a device can do, as far as kernels must know."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from deepseek_runtime.kernels.triton.language import INTERPRETED

SMALL_SHARED_MEMORY = 160 * 1024
"""Bytes per block below which tiles are not buffered three deep (consumer GPUs: about 100 KB, A100: 163 KB)."""
FNUZ_ARCHITECTURES = ("gfx940", "gfx941", "gfx942")
E4M3FN_ARCHITECTURES = ("gfx950",)


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """How activations are rounded for FP8 maths: to `maximum` at most, by scales that are powers of two (ue8m0) or not.

    MI300 multiplies e4m3fnuz only, whose largest value is 240; 224 keeps the step sizes of e4m3fn's 448.
    """

    dtype: torch.dtype = torch.float8_e4m3fn
    maximum: float = 448.0
    power_of_two: bool = False

    @property
    def is_fnuz(self) -> bool:
        return self.dtype is torch.float8_e4m3fnuz


@dataclass(frozen=True, slots=True)
class Hardware:
    """`fp8` is the device's own FP8 format, None where it has none (Ampere, CPU): weights are then decoded in the tile.

    `units` is the number of multiprocessors, `stages` how deep loads are buffered.
    """

    fp8: Fp8Format | None
    units: int
    stages: int

    @classmethod
    def of(cls, device: torch.device, *, power_of_two: bool = False) -> Hardware:
        """What `device` has; `power_of_two` is the checkpoint's `scale_fmt: ue8m0`."""
        if device.type == "cpu":
            return cls(fp8=None, units=1, stages=1)
        index = torch.cuda.current_device() if device.index is None else device.index
        return _gpu(index, power_of_two)


@cache
def _gpu(index: int, power_of_two: bool) -> Hardware:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        dtype = amd_fp8(properties.gcnArchName)
        # AMD's compiler keeps one tile in shared memory and the next in registers: two stages.
        return Hardware(_format(dtype, power_of_two), properties.multi_processor_count, stages=2)
    dtype = torch.float8_e4m3fn if (properties.major, properties.minor) >= (8, 9) else None
    roomy = properties.shared_memory_per_block_optin >= SMALL_SHARED_MEMORY
    return Hardware(_format(dtype, power_of_two), properties.multi_processor_count, stages=3 if roomy else 2)


def amd_fp8(architecture: str) -> torch.dtype | None:
    """The FP8 type of an AMD architecture such as "gfx942:sramecc+:xnack-"; None where it has no FP8 maths."""
    name = architecture.partition(":")[0]
    if name in FNUZ_ARCHITECTURES:
        return torch.float8_e4m3fnuz
    return torch.float8_e4m3fn if name in E4M3FN_ARCHITECTURES else None


def _format(dtype: torch.dtype | None, power_of_two: bool) -> Fp8Format | None:
    if dtype is None:
        return None
    return Fp8Format(dtype, 224.0 if dtype is torch.float8_e4m3fnuz else 448.0, power_of_two)


def upcasts() -> bool:
    """Whether operands of `tl.dot` must be float32 (see `language.INTERPRETED`)."""
    return INTERPRETED
