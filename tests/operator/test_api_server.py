"""The operator against a real API server, kubelet and garbage collector, with the rights of its own ClusterRole only.

The engine is a busybox that sleeps, laid over the template by `podTemplate`: what is tested is the operator's conduct;
the whole chain with a model is tests/e2e. The operator runs as a process that tests start, kill and start again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import stack
from cluster_access import Cluster, cluster_in_use

pytestmark = pytest.mark.cluster

NAMESPACE = "dsv3-operator-test"
REPOSITORY = Path(__file__).resolve().parents[2]
OURS = "serving.dsv3.io/deployment=chat"
HEALTH_PORT, METRICS_PORT = 18080, 18081
BUSYBOX = "dsv3.local/busybox:1"
SLEEPING = {
    "name": "engine",
    "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"],
    "startupProbe": {"$patch": "delete"},
    "livenessProbe": {"$patch": "delete"},
    "readinessProbe": {"$patch": "delete"},
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "models", "namespace": NAMESPACE},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}},
}


def deployment(name: str = "chat", **spec: Any) -> dict[str, Any]:
    """The smallest object whose pods become ready here."""
    return {
        "apiVersion": "serving.dsv3.io/v1alpha1",
        "kind": "DeepSeekV3Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "pvc://models/tutor"},
            "accelerator": {"vendor": "cpu"},
            "engine": {"image": BUSYBOX},
            "podTemplate": {"spec": {"containers": [SLEEPING], "terminationGracePeriodSeconds": 1}},
            **spec,
        },
    }


def eventually(what: str, holds: Callable[[], object], timeout: float = 60) -> None:
    """Ask until the answer is yes; fail with the question after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.1)


class World:
    """The test's namespace on the cluster, and the operator's process."""

    def __init__(self, cluster: Cluster, kubeconfig: Path) -> None:
        self.cluster = cluster
        self._kubeconfig = kubeconfig

    def kubectl(self, *arguments: str, given: Any = None) -> str:
        """kubectl in the namespace; `given` goes to its standard input as JSON."""
        text = None if given is None else json.dumps(given)
        return self.cluster.kubectl("-n", NAMESPACE, *arguments, input=text).stdout

    def apply(self, **spec: Any) -> None:
        """Create or change the object as its author would."""
        self.kubectl("apply", "-f", "-", given=deployment(**spec))

    def refusal(self, manifest: dict[str, Any]) -> str:
        """What the API server says to an object; fails if it takes it."""
        done = self.cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(manifest), check=False)
        assert done.returncode != 0, f"accepted: {done.stdout}"
        return done.stderr

    def wait(self, condition: str, seconds: int = 60) -> None:
        """Wait for a condition, such as `Ready` or `SpecValid=false`, of the present generation."""
        self.kubectl("wait", f"--for=condition={condition}", "dsv3/chat", f"--timeout={seconds}s")

    def object(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", "dsv3", "chat", "-o", "json"))
        return found

    def condition(self, name: str) -> dict[str, Any]:
        conditions = self.object().get("status", {}).get("conditions", [])
        return next((entry for entry in conditions if entry["type"] == name), {})

    def children(self) -> dict[str, dict[str, Any]]:
        """Everything that belongs to the object, by kind and name."""
        kinds = "serviceaccounts,persistentvolumeclaims,jobs,services,statefulsets,pods"
        items = json.loads(self.kubectl("get", kinds, "-l", OURS, "-o", "json"))["items"]
        return {f"{item['kind']}/{item['metadata']['name']}": item for item in items}

    def versions(self) -> dict[str, str]:
        """Resource versions of the object and its children: equal ones mean that nothing was written in between."""
        found = {**self.children(), "itself": self.object()}
        return {name: item["metadata"]["resourceVersion"] for name, item in found.items()}

    def fetch(self, port: int, path: str) -> str:
        """What the operator's process answers on one of its ports, empty if it does not."""
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}{path}').read().decode())"
        return self.cluster.run_in_network([sys.executable, "-c", code]).stdout

    def passes(self) -> float:
        """How many passes the running operator has made without an error, read from its metrics."""
        text = self.fetch(METRICS_PORT, "/metrics")
        wanted = 'dsv3_operator_reconciles_total{result="success"} '
        return sum(float(line.removeprefix(wanted)) for line in text.splitlines() if line.startswith(wanted))

    @contextmanager
    def operator(self, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the operator for as long as the block lasts, as its service account; SIGTERM must end it cleanly."""
        process = self.start(**settings)
        try:
            eventually("the operator is up", lambda: self.fetch(HEALTH_PORT, "/healthz"))
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        assert code == 0

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        environment = {
            "KUBECONFIG": str(self._kubeconfig),
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / name) for name in ("operator", "runtime")),
            "DSV3_NAMESPACES": NAMESPACE,
            "DSV3_RUNTIME_IMAGE": BUSYBOX,
            "DSV3_HEALTH_PORT": str(HEALTH_PORT),
            "DSV3_METRICS_PORT": str(METRICS_PORT),
            **settings,
        }
        assignments = [f"{name}={value}" for name, value in environment.items()]
        command = ["env", *assignments, sys.executable, "-m", "deepseek_operator"]
        return subprocess.Popen(self.cluster.in_network(command))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A namespace of our own; an operator that already runs in the cluster rests meanwhile."""
    cluster = cluster_in_use()
    _install_rights(cluster)
    replicas = _scale_installed_operator(cluster, "0")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")
    stack.create_namespace(cluster, NAMESPACE)
    kubeconfig = tmp_path_factory.mktemp("operator") / "kubeconfig"
    kubeconfig.write_text(_kubeconfig_of_operator(cluster))
    found = World(cluster, kubeconfig)
    found.kubectl("apply", "-f", "-", given=CLAIM)
    yield found
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    _scale_installed_operator(cluster, replicas)


def _install_rights(cluster: Cluster) -> None:
    """Apply the manifests' base without its Deployment, which may be there already with other images."""
    rendered = cluster.kubectl("kustomize", str(REPOSITORY / "manifests/base")).stdout
    kept = [manifest for manifest in yaml.safe_load_all(rendered) if manifest["kind"] != "Deployment"]
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=yaml.safe_dump_all(kept))
    cluster.kubectl("wait", "--for=condition=Established", "crd/deepseekv3deployments.serving.dsv3.io", "--timeout=30s")


def _scale_installed_operator(cluster: Cluster, replicas: str) -> str:
    """Scale the operator's Deployment, if there is one; return how many replicas it had."""
    named = ["-n", stack.OPERATOR_NAMESPACE, "deployment", "dsv3-operator"]
    had = cluster.kubectl("get", *named, "-o", "jsonpath={.spec.replicas}", "--ignore-not-found").stdout
    if had:
        cluster.kubectl("scale", *named, f"--replicas={replicas}")
    return had


def _kubeconfig_of_operator(cluster: Cluster) -> str:
    """A kubeconfig that is the operator's service account, so that a missing right fails a test."""
    token = cluster.kubectl("-n", stack.OPERATOR_NAMESPACE, "create", "token", "dsv3-operator").stdout.strip()
    config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten").stdout)
    config["users"][0]["user"] = {"token": token}
    return yaml.safe_dump(config)


@pytest.fixture
def clean(world: World) -> Iterator[World]:
    """The namespace without any object of a former test."""
    yield world
    world.kubectl("delete", "dsv3", "--all", "--timeout=60s")
    world.kubectl("delete", "persistentvolumeclaims", "-l", OURS, "--timeout=60s")
    eventually("children are collected", lambda: not world.children())


REFUSED = [
    ("unknown field", {"replicsa": 2}, 'unknown field "spec.replicsa"'),
    ("no nodes", {"nodes": 0}, "spec.nodes in body should be greater than or equal to 1"),
    ("negative replicas", {"replicas": -1}, "spec.replicas in body should be greater than or equal to 0"),
    (
        "unknown scheme",
        {"model": {"source": "ftp://example.com/m"}},
        "supported scheme: hf://organisation/name or pvc://",
    ),
    ("no organisation", {"model": {"source": "hf://tutor"}}, "hf://organisation/name, for example"),
    ("path upwards", {"model": {"source": "pvc://models/../etc"}}, "without '..'"),
    (
        "endpoint of a claim",
        {"model": {"source": "pvc://m", "endpoint": "http://hub"}},
        "a pvc:// source is read in place",
    ),
    ("unknown vendor", {"accelerator": {"vendor": "tpu"}}, 'supported values: "nvidia", "amd", "cpu"'),
    ("device for cpu", {"accelerator": {"vendor": "cpu", "resourceName": "a.b/c"}}, "vendor cpu uses no device"),
    (
        "claim for one node",
        {"nodes": 2, "weights": {"storage": {"accessModes": ["ReadWriteOnce"]}}},
        "accessModes must contain ReadWriteMany",
    ),
    ("two claims", {"weights": {"claimName": "a", "storage": {}}}, "give one of them"),
    (
        "delete a given claim",
        {"weights": {"claimName": "a", "deletionPolicy": "Delete"}},
        "a claim given by claimName is kept",
    ),
    (
        "ranges without load balancer",
        {"service": {"type": "ClusterIP", "loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "need type LoadBalancer",
    ),
]


@pytest.mark.parametrize(("spec", "sentence"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_wrong_spec_is_refused_with_a_sentence(world: World, spec: dict[str, Any], sentence: str) -> None:
    assert sentence in world.refusal(deployment(**spec))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("n" * 41, "at most 40 characters"),
        ("a.b", "must start with a letter and hold only a-z, 0-9 and '-'"),
        ("1a", "must start with a letter"),
        ("Chat", "lowercase RFC 1123"),
    ],
)
def test_a_name_that_others_cannot_derive_from_is_refused(world: World, name: str, sentence: str) -> None:
    assert sentence in world.refusal(deployment(name))


def test_a_source_cannot_change(clean: World) -> None:
    clean.apply()
    assert "source is immutable" in clean.refusal(deployment(model={"source": "pvc://models/other"}))


def test_the_definition_is_structural_and_accepted(world: World) -> None:
    crd = json.loads(world.kubectl("get", "crd", "deepseekv3deployments.serving.dsv3.io", "-o", "json"))
    states = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert states["NamesAccepted"] == states["Established"] == "True"
    assert states.get("NonStructuralSchema", "False") == "False"


def test_ready_is_reached_and_the_users_object_stays_the_users(clean: World) -> None:
    with clean.operator():
        clean.apply(nodes=2)
        clean.wait("Ready")
        found = clean.object()
    assert "finalizers" not in found["metadata"]
    assert set(found["metadata"]["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}
    assert [pod["ready"] for pod in found["status"]["groups"][0]["pods"]] == [True, True]
    assert found["status"]["endpoint"].startswith("http://")
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
    for name, child in clean.children().items():
        assert "kubectl.kubernetes.io/last-applied-configuration" not in child["metadata"].get("annotations", {}), name


def test_a_restart_and_resyncs_write_nothing(clean: World) -> None:
    with clean.operator():
        clean.apply(nodes=2)
        clean.wait("Ready")
    before = clean.versions()
    with clean.operator(DSV3_RESYNC_SECONDS="0.2"):
        eventually("ten passes", lambda: clean.passes() >= 10)
        assert clean.versions() == before


def test_an_operator_killed_while_creating_completes_after_its_restart(clean: World) -> None:
    for kind in ("ServiceAccount", "Service", "StatefulSet"):
        process = clean.start()
        clean.apply(replicas=2)
        eventually(f"a {kind}", lambda kind=kind: any(name.startswith(f"{kind}/") for name in clean.children()))
        process.kill()
        process.wait()
    with clean.operator():
        clean.wait("Ready")
        names = sorted(name for name in clean.children() if not name.startswith("Pod/"))
    assert names == [
        "Service/chat",
        "Service/chat-ranks",
        "ServiceAccount/chat",
        "StatefulSet/chat-g0",
        "StatefulSet/chat-g1",
    ]


def test_deletion_works_with_the_operator_stopped(clean: World) -> None:
    with clean.operator():
        clean.apply()
        clean.wait("Ready")
    clean.kubectl("delete", "dsv3", "chat", "--timeout=10s")
    eventually("children are collected", lambda: not clean.children(), 30)


@pytest.mark.parametrize(("policy", "left"), [("Retain", ["PersistentVolumeClaim/chat-weights"]), ("Delete", [])])
def test_the_claim_outlives_its_object_unless_told_otherwise(clean: World, policy: str, left: list[str]) -> None:
    spec = {"model": {"source": "hf://dsv3/none", "endpoint": "http://none.invalid"}, "nodes": 2}
    with clean.operator():
        clean.apply(**spec, weights={"deletionPolicy": policy, "storage": {"size": "1Mi"}})
        eventually("the Job's pod", lambda: any(name.startswith("Pod/") for name in clean.children()))
        clean.kubectl("delete", "dsv3", "chat", "--timeout=10s")
        eventually("children are collected", lambda: sorted(clean.children()) == left, 30)


def test_ready_follows_the_pods_and_names_the_cause(clean: World) -> None:
    with clean.operator():
        clean.apply(nodes=2)
        clean.wait("Ready")
        clean.apply(nodes=2, engine={"image": "dsv3.local/absent:1"})
        clean.wait("Ready=false")
        eventually("the cause", lambda: clean.condition("Ready").get("reason") in ("ErrImagePull", "ImagePullBackOff"))
        assert "pod chat-g0-" in clean.condition("Ready")["message"]
        clean.apply(nodes=2)
        clean.wait("Ready")


def test_a_new_revision_never_takes_down_more_than_one_group(clean: World) -> None:
    with clean.operator():
        clean.apply(replicas=3)
        clean.wait("Ready")
        before = {name: item["metadata"]["uid"] for name, item in clean.children().items() if name.startswith("Pod/")}
        clean.apply(replicas=3, engine={"image": BUSYBOX, "env": [{"name": "NEW", "value": "1"}]})
        lowest = 3

        def rolled() -> bool:
            nonlocal lowest
            status = clean.object()["status"]
            lowest = min(lowest, status["readyReplicas"])
            complete = clean.condition("RolloutComplete")
            return complete["status"] == "True" and status["readyReplicas"] == status["updatedReplicas"] == 3

        clean.wait("RolloutComplete=false")
        eventually("all groups are new", rolled, 90)
        after = {name: item["metadata"]["uid"] for name, item in clean.children().items() if name.startswith("Pod/")}
    assert lowest == 2
    assert set(before) == set(after)
    assert not set(before.values()) & set(after.values())


def test_the_scale_subresource_adds_and_removes_groups(clean: World) -> None:
    with clean.operator():
        clean.apply()
        clean.wait("Ready")
        uid = clean.children()["Pod/chat-g0-0"]["metadata"]["uid"]
        clean.kubectl("scale", "dsv3", "chat", "--replicas=2")
        eventually("two groups", lambda: clean.object()["status"]["groupsSummary"] == "2/2")
        clean.kubectl("scale", "dsv3", "chat", "--replicas=1")
        eventually("one group", lambda: "StatefulSet/chat-g1" not in clean.children())
        assert clean.children()["Pod/chat-g0-0"]["metadata"]["uid"] == uid


def test_what_somebody_else_changes_is_put_back(clean: World) -> None:
    with clean.operator():
        clean.apply()
        clean.wait("Ready")
        stolen = {"spec": {"selector": {"serving.dsv3.io/role": "stolen"}}}
        clean.kubectl("patch", "service", "chat", "--type=merge", "-p", json.dumps(stolen))
        role = "serving.dsv3.io/role"
        eventually("mended", lambda: clean.children()["Service/chat"]["spec"]["selector"][role] == "rank")


def test_a_pod_template_that_the_api_server_refuses_is_told_with_its_words(clean: World) -> None:
    with clean.operator():
        clean.apply(podTemplate={"spec": {"containers": [{"name": "engine", "imagePullPolicy": "Sometimes"}]}})
        clean.wait("SpecValid=false")
        assert "imagePullPolicy" in clean.condition("Ready")["message"]
        assert clean.condition("Stalled")["status"] == "True"
        clean.apply()
        clean.wait("Ready")


def test_an_unready_pod_is_no_endpoint_for_clients(clean: World) -> None:
    command = ["/bin/sh", "-c", "test -e /tmp/ready"]
    probe = {"$patch": "replace", "exec": {"command": command}, "periodSeconds": 1}
    template = {"spec": {"containers": [SLEEPING | {"readinessProbe": probe}], "terminationGracePeriodSeconds": 1}}

    def addresses() -> int:
        slices = json.loads(
            clean.kubectl("get", "endpointslices", "-l", "kubernetes.io/service-name=chat", "-o", "json")
        )
        ends = [end for item in slices["items"] for end in item["endpoints"] or []]
        return sum(end["conditions"]["ready"] for end in ends)

    with clean.operator():
        clean.apply(nodes=2, podTemplate=template)
        eventually(
            "pods run", lambda: len(clean.object().get("status", {}).get("groups", [{}])[0].get("pods", [])) == 2
        )
        assert addresses() == 0
        for rank in (0, 1):
            pod = f"chat-g0-{rank}"
            eventually("the container runs", lambda pod=pod: "Running" in clean.kubectl("get", "pod", pod))
            clean.kubectl("exec", pod, "--", "touch", "/tmp/ready")
        clean.wait("Ready")
        assert addresses() == 1
