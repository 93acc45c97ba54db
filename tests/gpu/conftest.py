"""Tests that need a GPU ask for `gpu`; where torch sees none they are skipped with that reason."""

import pytest
import torch


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA or ROCm device")
    return torch.device("cuda", torch.cuda.current_device())
