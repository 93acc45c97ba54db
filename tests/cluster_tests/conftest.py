"""The local cluster for its own tests, and one namespace for all of them."""

import os
from collections.abc import Iterator

import pytest

from cluster_access import Cluster, cluster_in_use


@pytest.fixture(scope="session")
def local_cluster() -> Cluster:
    """The local cluster, up."""
    if os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names another cluster; these tests are about the local one")
    return cluster_in_use()


@pytest.fixture(scope="session")
def namespace(local_cluster: Cluster) -> Iterator[str]:
    name = f"cluster-tests-{os.getpid()}"
    local_cluster.kubectl("create", "namespace", name)
    local_cluster.kubectl("-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=20s")
    yield name
    local_cluster.kubectl("delete", "namespace", name, "--wait=false")
