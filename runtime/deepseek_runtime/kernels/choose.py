"""Which kernels a device gets."""

from __future__ import annotations

import torch

from deepseek_runtime.kernels.interface import Kernels
from deepseek_runtime.kernels.reference import TorchKernels


def choose_kernels(device: torch.device, dtype: torch.dtype, *, batch_invariant: bool = False) -> Kernels:
    """The fastest that this machine has for a device and a compute type."""
    return TorchKernels()
