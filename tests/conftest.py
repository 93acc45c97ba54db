"""Tests marked `cluster` need root or KUBECONFIG: without either they fail in CI and are skipped elsewhere."""

import os

import pytest

_NEEDS = "needs root, to run the local Kubernetes, or KUBECONFIG"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Decide before any fixture builds something."""
    if item.get_closest_marker("cluster") is None or os.geteuid() == 0 or os.environ.get("KUBECONFIG"):
        return
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(_NEEDS, pytrace=False)
    pytest.skip(_NEEDS)
