"""Where everything lives: folders under the user's cache, addresses inside the private network, versions."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "v1.34.4"
ETCD_VERSION = "v3.6.4"
COREDNS_VERSION = "v1.12.4"
HELM_VERSION = "v3.20.2"

API_PORT = 6443
FORWARD_PORT = 16443
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_API = "10.96.0.1"
POD_CIDR = "10.244.0.0/16"
BALANCER_PREFIX = "10.254.1."
BALANCER_CIDR = "10.254.1.0/24"
CLUSTER_DOMAIN = "cluster.local"
PAUSE_IMAGE = "dsv3.local/pause:1"
BUSYBOX_IMAGE = "dsv3.local/busybox:1"
OPERATOR_IMAGE = "dsv3.local/operator:dev"
RUNTIME_IMAGE = "dsv3.local/runtime:dev"


@dataclass(frozen=True)
class Node:
    """One node: its own containerd, kubelet, bridge, address and cgroup root. `index` counts from 1."""

    index: int
    run: Path
    store: Path
    cluster_cgroup: str

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def address(self) -> str:
        return f"10.254.0.{self.index}"

    @property
    def bridge(self) -> str:
        return f"cni{self.index}"

    @property
    def pod_subnet(self) -> str:
        return f"10.244.{self.index}.0/24"

    @property
    def pod_gateway(self) -> str:
        return f"10.244.{self.index}.1"

    @property
    def cgroup(self) -> str:
        return f"{self.cluster_cgroup}/{self.name}"

    @property
    def containerd_state(self) -> str:
        return f"/run/containerd-{self.name}"

    @property
    def containerd_socket(self) -> str:
        return f"{self.containerd_state}/containerd.sock"


@dataclass(frozen=True)
class Layout:
    """The folders of one user's cluster; `run` lives only while it is up, the rest is cache."""

    cache: Path

    @classmethod
    def of_user(cls) -> "Layout":
        """`$XDG_CACHE_HOME/deepseek-v3-operator`, or the same under `~/.cache`."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(home).absolute() / "deepseek-v3-operator")

    @property
    def cgroup(self) -> str:
        """Named after the cache folder, so that clusters of two users do not meet."""
        return f"dsv3-local-{hashlib.sha256(str(self.cache).encode()).hexdigest()[:8]}"

    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def tools(self) -> Path:
        return self.cache / "tools"

    @property
    def run(self) -> Path:
        return self.cache / "run"

    @property
    def stores(self) -> Path:
        return self.cache / "nodes"

    @property
    def logs(self) -> Path:
        return self.run / "log"

    @property
    def pki(self) -> Path:
        return self.run / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    @property
    def volumes(self) -> Path:
        return self.run / "volumes"

    def node(self, index: int) -> Node:
        return Node(index, self.run / f"node{index}", self.stores / f"node{index}", self.cgroup)

    def nodes(self, count: int) -> list[Node]:
        return [self.node(index) for index in range(1, count + 1)]
