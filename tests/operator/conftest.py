"""A cluster in a dictionary: state in, state out.

`FakeCluster` is the store behind the `Kube` protocol, with hands for what other controllers would do (run the download,
make pods, give an address). It counts writes, so that "nothing changed" can be asserted. What only a real API server
knows (admission, defaulting, field ownership) is tested in test_api_server.py.
"""

import asyncio
import copy
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deepseek_operator import names
from deepseek_operator.errors import RejectedError
from deepseek_operator.manifest import (
    BY_KIND,
    DEPLOYMENT,
    Key,
    Manifest,
    Resource,
    labels_of,
    uid_of,
)
from deepseek_operator.reconcile import Outcome, Reconciler
from deepseek_operator.settings import Settings

KEY = Key("ai", "chat")
START = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)


class FakeCluster:
    """Objects by kind and name in one namespace, with the bookkeeping that an API server does."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.writes: list[tuple[str, str]] = []
        self.calls: set[tuple[str, str]] = set()
        self.events: list[Manifest] = []
        self.reject: Callable[[Manifest], str | None] = lambda manifest: None
        self.now = START
        self._uids = itertools.count(1)

    # The Kube protocol.

    async def get(self, resource: Resource, key: Key) -> Manifest | None:
        self.calls.add(("get", resource.plural))
        return copy.deepcopy(self.objects.get((resource.kind, key.name)))

    async def find_all(self, resource: Resource, namespace: str, selector: str) -> list[Manifest]:
        self.calls.add(("list", resource.plural))
        wanted = dict(pair.split("=") for pair in selector.split(","))
        found = [item for (kind, _), item in self.objects.items() if kind == resource.kind]
        return copy.deepcopy([item for item in found if wanted.items() <= labels_of(item).items()])

    async def apply(self, manifest: Manifest) -> None:
        if reason := self.reject(manifest):
            raise RejectedError(422, reason)
        plural = BY_KIND[manifest["kind"]].plural
        # Server-side apply of a new object needs the right to create as well.
        self.calls |= {("patch", plural), ("create", plural)}
        self._record("apply", manifest["kind"], manifest["metadata"]["name"])
        self.put(manifest)

    async def apply_status(self, key: Key, status: dict[str, Any]) -> None:
        self.calls.add(("patch", f"{DEPLOYMENT.plural}/status"))
        self._record("status", DEPLOYMENT.kind, key.name)
        self.objects[DEPLOYMENT.kind, key.name]["status"] = copy.deepcopy(status)

    async def delete(self, resource: Resource, key: Key, uid: str) -> None:
        self.calls.add(("delete", resource.plural))
        live = self.objects.get((resource.kind, key.name))
        if live is not None and uid_of(live) == uid:
            self._record("delete", resource.kind, key.name)
            self.remove(resource.kind, key.name)

    async def create(self, manifest: Manifest) -> None:
        self.calls.add(("create", BY_KIND[manifest["kind"]].plural))
        self.events.append(manifest)

    def _record(self, verb: str, kind: str, name: str) -> None:
        self.writes.append((verb, f"{kind}/{name}"))

    # What an API server and its controllers do.

    def put(self, manifest: Manifest) -> Manifest:
        """Store an object as apply would: given fields replace, a changed spec is a new generation."""
        identity = manifest["kind"], manifest["metadata"]["name"]
        old = self.objects.get(identity)
        new = copy.deepcopy(manifest)
        if old is None:
            new["metadata"] |= {"uid": f"uid-{next(self._uids)}", "generation": 1}
            new["metadata"]["creationTimestamp"] = self.now.isoformat()
        else:
            changed = old.get("spec") != new.get("spec")
            kept = {name: old["metadata"][name] for name in ("uid", "creationTimestamp")}
            new["metadata"] |= kept | {"generation": old["metadata"]["generation"] + changed}
            new.setdefault("status", old.get("status", {}))
        self.objects[identity] = new
        return new

    def remove(self, kind: str, name: str) -> None:
        """Delete an object and, as the garbage collector would, what it controls."""
        uid = uid_of(self.objects.pop((kind, name)))
        owned = [
            identity
            for identity, item in self.objects.items()
            if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", []))
        ]
        for identity in owned:
            if identity in self.objects:
                self.remove(*identity)

    def names(self, kind: str) -> list[str]:
        """Return the names of all objects of a kind."""
        return sorted(name for stored, name in self.objects if stored == kind)

    def one(self, kind: str) -> Manifest:
        """Return the only object of a kind."""
        (name,) = self.names(kind)
        return self.objects[kind, name]

    def deploy(self, spec: Manifest, name: str = KEY.name) -> Manifest:
        """Create or change the user's object."""
        metadata = {"name": name, "namespace": KEY.namespace}
        manifest = {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.kind, "metadata": metadata, "spec": spec}
        return self.put(manifest)

    def pod(self, owner: Manifest, name: str, labels: dict[str, str], status: Manifest) -> Manifest:
        """Create or change a pod of a Job or StatefulSet."""
        reference = {"kind": owner["kind"], "name": owner["metadata"]["name"], "uid": uid_of(owner), "controller": True}
        metadata = {"name": name, "namespace": KEY.namespace, "labels": labels, "ownerReferences": [reference]}
        return self.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": status})

    def download_ends(self, *, code: int, message: str, waiting: bool = False) -> None:
        """Let the download's container end now with a termination message."""
        job = self.one("Job")
        end = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message}
        end["finishedAt"] = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        state = {"waiting": {"reason": "CrashLoopBackOff"}} if waiting else {"terminated": end}
        container = {"name": "download", "state": state, "lastState": {"terminated": end} if waiting else {}}
        labels = dict(labels_of(job))
        self.pod(job, f"{job['metadata']['name']}-x", labels, {"containerStatuses": [container]})
        if code == 0:
            job["status"] = {"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 1}

    def weights_arrive(self) -> None:
        """Let the download succeed."""
        self.download_ends(code=0, message='{"commit": "c0ffee", "bytes": 5000000, "files": 7}')

    def run_group(self, index: int, status: Manifest | None = None) -> None:
        """Let the StatefulSet's controller make the pods of a group that are missing, ready unless told otherwise."""
        stateful_set = self.objects["StatefulSet", names.group(KEY.name, index)]
        stateful_set["status"] = {"observedGeneration": stateful_set["metadata"]["generation"]}
        labels = stateful_set["spec"]["template"]["metadata"]["labels"]
        for rank in range(stateful_set["spec"]["replicas"]):
            name = names.pod(KEY.name, index, rank)
            if ("Pod", name) not in self.objects:
                self.pod(stateful_set, name, labels | {names.POD_INDEX: str(rank)}, status or ready_pod())

    def pod_becomes(self, name: str, status: Manifest) -> None:
        """Change the status of one pod."""
        self.objects["Pod", name]["status"] = status

    def address(self, ip: str = "10.0.0.9") -> None:
        """Give the clients' Service its load-balancer address."""
        self.objects["Service", KEY.name]["status"] = {"loadBalancer": {"ingress": [{"ip": ip}]}}

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    # Reading the result.

    def status(self) -> dict[str, Any]:
        """Return the status of the user's object."""
        found: dict[str, Any] = self.objects[DEPLOYMENT.kind, KEY.name]["status"]
        return found

    def condition(self, name: str) -> dict[str, Any]:
        """Return one condition of the user's object."""
        return next(condition for condition in self.status()["conditions"] if condition["type"] == name)


def ready_pod() -> Manifest:
    """Return the status of a pod that serves."""
    return {
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "engine", "ready": True, "started": True, "restartCount": 0, "state": {}}],
    }


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DSV3_RUNTIME_IMAGE", "registry.example/runtime:1")
    monkeypatch.setenv("DSV3_RUNTIME_IMAGE_ROCM", "registry.example/runtime-rocm:1")
    return Settings()


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def reconcile(cluster: FakeCluster, settings: Settings) -> Callable[[], Outcome]:
    """Make one pass over the user's object; each call is a freshly started operator, for nothing is kept."""

    def once() -> Outcome:
        reconciler = Reconciler(cluster, settings, lambda: cluster.now)
        return asyncio.run(reconciler.reconcile(KEY))

    return once


@pytest.fixture
def settle(cluster: FakeCluster, reconcile: Callable[[], Outcome]) -> Callable[[], Outcome]:
    """Make passes until one writes nothing; fail if that never comes."""

    def run() -> Outcome:
        for _ in range(10):
            before = len(cluster.writes)
            outcome = reconcile()
            if len(cluster.writes) == before:
                return outcome
        raise AssertionError(f"still writing after 10 passes: {cluster.writes[-6:]}")

    return run


@pytest.fixture
def cpu_spec() -> Manifest:
    """The spec of a small model over two pods without devices."""
    return {
        "model": {"source": "hf://tutor/tutor", "endpoint": "http://mirror.ai.svc:8000"},
        "accelerator": {"vendor": "cpu"},
        "nodes": 2,
        "replicas": 1,
    }


@pytest.fixture
def serving(cluster: FakeCluster, settle: Callable[[], Outcome], cpu_spec: Manifest) -> Callable[[], FakeCluster]:
    """Bring `cpu_spec` to serving and return the cluster."""

    def bring() -> FakeCluster:
        cluster.deploy(cpu_spec)
        settle()
        cluster.weights_arrive()
        cluster.address()
        settle()
        for index in range(cpu_spec["replicas"]):
            cluster.run_group(index)
        settle()
        return cluster

    return bring
