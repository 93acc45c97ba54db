"""Which kernels a device gets."""

from __future__ import annotations

import torch

from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.kernels.invariant import ALWAYS, InvariantTorchKernels
from deepseek_runtime.kernels.reference import TorchKernels


def choose_kernels(
    device: torch.device, dtype: torch.dtype, *, batch_invariant: bool = False, power_of_two_scales: bool = False
) -> Kernels:
    """The fastest that this machine has for a device and a compute type; the log says where that is plain torch.

    `power_of_two_scales` is the checkpoint's wish for activations that are quantised to FP8; only GPUs do that.
    """
    if device.type == "cpu":
        found = _native(dtype, batch_invariant)
    else:
        found = _triton(device, batch_invariant, power_of_two_scales)
    return found or (InvariantTorchKernels() if batch_invariant else TorchKernels())


def _native(dtype: torch.dtype, batch_invariant: bool) -> Kernels | None:
    from deepseek_runtime.kernels.cpu.kernels import COMPUTE_TYPES, CpuKernels
    from deepseek_runtime.kernels.cpu.library import load_library

    library = load_library() if dtype in COMPUTE_TYPES else None
    return CpuKernels(library, batch_invariant=batch_invariant) if library else None


def _triton(device: torch.device, batch_invariant: bool, power_of_two_scales: bool) -> Kernels | None:
    try:
        from deepseek_runtime.kernels.triton.kernels import TritonKernels
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return None
    kernels = TritonKernels.for_device(device, batch_invariant=batch_invariant, power_of_two_scales=power_of_two_scales)
    if batch_invariant:
        kernels.absorb_up_to = ALWAYS
    return kernels
