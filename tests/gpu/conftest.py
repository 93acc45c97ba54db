"""Tests that need a GPU ask for `gpu`; where torch sees none they are skipped with that reason."""

import os

import pytest
import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as in the images; triton 3.9 warns where nothing is said


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA or ROCm device")
    return torch.device("cuda", torch.cuda.current_device())
