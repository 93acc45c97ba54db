"""What stands between an empty cluster and a served model: the images, the operator, the hub mirror.

The demo and the end-to-end tests install the same things in the same way.
"""

from pathlib import Path

from cluster_access import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
OPERATOR_IMAGE = "dsv3.local/operator:dev"
RUNTIME_IMAGE = "dsv3.local/runtime:dev"
OPERATOR_NAMESPACE = "dsv3-system"
TUTOR_SAMPLE = REPOSITORY / "manifests/samples/tutor.yaml"
_OVERLAY = REPOSITORY / "manifests/overlays/local"
_HUB = REPOSITORY / "demo/hub-mirror.yaml"


def load_images(cluster: Cluster) -> None:
    """Give both images to the nodes of a local cluster; another cluster is expected to have them."""
    if cluster.is_local:
        for image in (OPERATOR_IMAGE, RUNTIME_IMAGE):
            cluster.load_image(image)


def install_operator(cluster: Cluster) -> None:
    """Apply CRD, roles and Deployment; return when the operator is ready."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(_OVERLAY))
    cluster.kubectl("wait", "--for=condition=Established", "crd/deepseekv3deployments.serving.dsv3.io", "--timeout=30s")
    cluster.kubectl("-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment", "--timeout=120s")


def create_namespace(cluster: Cluster, name: str) -> None:
    """Make the namespace if it is not there."""
    manifest = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"
    cluster.kubectl("apply", "--server-side", "-f", "-", input=manifest)


def install_hub(cluster: Cluster, namespace: str) -> None:
    """Run the hub mirror, with the tutor in it, as Service `hub` of the namespace; return when it answers."""
    cluster.kubectl("-n", namespace, "apply", "--server-side", "-f", str(_HUB))
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/hub", "--timeout=120s")
