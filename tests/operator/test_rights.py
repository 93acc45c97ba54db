"""What the operator does in a rich life, beside what its ClusterRole grants: neither more nor less."""

from pathlib import Path

import yaml

from deepseek_operator.manifest import CHILDREN, DEPLOYMENT

ROLE_FILE = Path(__file__).resolve().parents[2] / "manifests/base/rbac.yaml"


def _granted() -> set[tuple[str, str]]:
    (role,) = [m for m in yaml.safe_load_all(ROLE_FILE.read_text()) if m["kind"] == "ClusterRole"]
    return {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def test_the_role_grants_exactly_what_the_operator_does(serving, settle, cluster, cpu_spec):
    """Serve, roll, shrink and fail: together these make every call that there is."""
    cpu_spec["replicas"] = 2
    serving()
    cluster.deploy(cpu_spec | {"engine": {"image": "registry.example/runtime:2"}})
    settle()
    cluster.objects["StatefulSet", "chat-g0"]["status"] = {"observedGeneration": 2}
    settle()
    cluster.deploy(cpu_spec | {"replicas": 0, "model": cpu_spec["model"] | {"revision": "next"}})
    settle()
    watched = {("watch", kind.plural) for kind in (DEPLOYMENT, *CHILDREN)} | {("list", DEPLOYMENT.plural)}
    assert cluster.calls | watched == _granted()
