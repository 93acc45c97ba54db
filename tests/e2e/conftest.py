"""The whole product on a real Kubernetes: images built, operator and hub mirror running, the tutor served."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

import stack
from cluster_access import LOCAL_CLUSTER, Cluster, cluster_in_use
from deployment import Deployment

NAMESPACE = "dsv3-e2e"


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A cluster that knows the images of this working tree and runs its operator."""
    found = cluster_in_use()
    if found.is_local:
        subprocess.run([sys.executable, str(LOCAL_CLUSTER), "images"], check=True)
        stack.load_images(found)
    stack.install_operator(found)
    return found


@pytest.fixture(scope="session")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the session's own with a hub mirror in it."""
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")
    stack.create_namespace(cluster, NAMESPACE)
    stack.install_hub(cluster, NAMESPACE)
    yield NAMESPACE
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="session")
def tutor(cluster: Cluster, namespace: str) -> Deployment:
    """The tutor over two pods, Ready."""
    deployment = Deployment(cluster, namespace, "tutor")
    deployment.apply(nodes=2)
    deployment.wait_ready()
    return deployment
