"""One DeepSeekV3Deployment under test: apply, look at, wait for."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster_access import Cluster

Object = dict[str, Any]
POLL_S = 0.25


@dataclass(frozen=True)
class Deployment:
    """Reads its state from the cluster each time; holds none."""

    cluster: Cluster
    namespace: str
    name: str

    def manifest(self, *, nodes: int = 1, **spec: Any) -> Object:
        """The object for the tutor on CPU, its weights from the namespace's hub mirror."""
        return {
            "apiVersion": "serving.dsv3.io/v1alpha1",
            "kind": "DeepSeekV3Deployment",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "model": {
                    "source": "hf://dsv3/tutor",
                    "endpoint": f"http://hub.{self.namespace}.svc",
                    "servedNames": ["tutor"],
                },
                "accelerator": {"vendor": "cpu", "perNode": 1},
                "nodes": nodes,
                **spec,
            },
        }

    def apply(self, *, nodes: int = 1, **spec: Any) -> None:
        """Create or change it."""
        self.kubectl("apply", "-f", "-", input=json.dumps(self.manifest(nodes=nodes, **spec)))

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 (as in subprocess)
        """kubectl in the object's namespace; its output. Raises when it fails."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=input).stdout

    def get(self) -> Object | None:
        """The object as the API server has it, None when there is none."""
        text = self.kubectl("get", "dsv3", self.name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def status(self) -> Object:
        """Its status; empty when it has none."""
        return (self.get() or {}).get("status", {})  # type: ignore[no-any-return]

    def condition(self, kind: str) -> Object:
        """One condition of the status; empty when it is not there."""
        return next((c for c in self.status().get("conditions", []) if c["type"] == kind), {})

    def children(self, kind: str) -> list[Object]:
        """All objects of a kind that carry the object's label."""
        text = self.kubectl("get", kind, "-l", f"serving.dsv3.io/deployment={self.name}", "-o", "json")
        return json.loads(text)["items"]  # type: ignore[no-any-return]

    def pods(self) -> dict[str, Object]:
        """The group's pods by name, download pods left out."""
        return {p["metadata"]["name"]: p for p in self.children("pods") if f"{self.name}-g" in p["metadata"]["name"]}

    def is_ready(self) -> bool:
        """Whether the condition Ready is true for the current generation."""
        found = self.get() or {}
        ready = self.condition("Ready")
        return (
            ready.get("status") == "True"
            and found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        )

    def wait_ready(self, timeout: float = 240) -> None:
        """Return as soon as it is Ready."""
        self.wait(self.is_ready, "is Ready", timeout)

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 240) -> None:
        """Poll until `condition`; a failure says what was awaited, the last status, pods and events."""
        give_up = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < give_up, f"{self.name} never {what} within {timeout} s\n{self.describe()}"
            time.sleep(POLL_S)

    def endpoint(self) -> str:
        """The URL that the status gives to clients."""
        return str(self.status()["endpoint"])

    def delete(self) -> None:
        """Delete the object and its claim; return when both are gone."""
        self.kubectl("delete", "dsv3", self.name, "--ignore-not-found", "--timeout=60s")
        self.wait(lambda: not self.pods(), "lost its pods", 60)
        self.kubectl("delete", "pvc", f"{self.name}-weights", "--ignore-not-found", "--timeout=60s")

    def describe(self) -> str:
        """What a person would look at first."""
        pods = self.kubectl("get", "pods", "-o", "wide")
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp")
        logs = [f"--- {pod}\n" + self._log(pod) for pod in self.pods()]
        return "\n".join([json.dumps(self.status(), indent=1), pods, events[-4000:], *logs])

    def _log(self, pod: str) -> str:
        done = self.cluster.kubectl("-n", self.namespace, "logs", pod, "--tail=30", check=False)
        return done.stdout + done.stderr
