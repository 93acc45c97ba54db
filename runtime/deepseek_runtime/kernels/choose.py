"""Which kernels a device gets."""

from __future__ import annotations

import torch

from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.kernels.reference import TorchKernels


def choose_kernels(device: torch.device, dtype: torch.dtype, *, batch_invariant: bool = False) -> Kernels:
    """The fastest that this machine has for a device and a compute type."""
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        from deepseek_runtime.kernels.cpu.kernels import CpuKernels
        from deepseek_runtime.kernels.cpu.library import load_library

        library = load_library()
        if library is not None:
            return CpuKernels(library)
    return TorchKernels()
