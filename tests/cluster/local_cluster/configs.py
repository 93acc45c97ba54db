"""Configuration files of the daemons. Pure: each function returns text; JSON wherever the reader accepts YAML."""

import json
from typing import Any

from .layout import CLUSTER_DOMAIN, PAUSE_IMAGE, POD_CIDR, Layout, Node

DNS_ADDRESS = "10.254.0.1"
STORAGE_PROVISIONER = "dsv3.local/hostpath"

_UNUSED_PLUGINS = [
    *(f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")),
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
]
_CRI_PLUGIN = "io.containerd.grpc.v1.cri"


def containerd(node: Node, *, with_cri: bool = True) -> str:
    """containerd's TOML; without CRI it serves only to clear the containers that an earlier run left in the store."""
    disabled = json.dumps(_UNUSED_PLUGINS if with_cri else [*_UNUSED_PLUGINS, _CRI_PLUGIN])
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE, lowering a score fails.
    return f"""version = 2
root = "{node.store}"
state = "{node.containerd_state}"
disabled_plugins = {disabled}
[grpc]
  address = "{node.containerd_socket}"
[plugins."{_CRI_PLUGIN}"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."{_CRI_PLUGIN}".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{node.run}/cni"
  [plugins."{_CRI_PLUGIN}".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."{_CRI_PLUGIN}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{_CRI_PLUGIN}".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def cni(node: Node) -> str:
    """A bridge per node; the kernel routes between the bridges, so pods of different nodes reach each other."""
    addresses = {
        "type": "host-local",
        "dataDir": f"/run/cni-{node.name}",
        "ranges": [[{"subnet": node.pod_subnet, "gateway": node.pod_gateway}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": node.bridge, "isGateway": True, "hairpinMode": True, "ipMasq": False}
    plugins = [{**bridge, "ipam": addresses}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "0.4.0", "name": node.bridge, "plugins": plugins}, indent=2)


def kubelet(layout: Layout, node: Node) -> str:
    """Quick status and small eviction limits: the disk is the developer's, the node is a guest on it."""
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True, "cacheTTL": "10s"},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": False,
        "failCgroupV1": False,
        "oomScoreAdj": 0,
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": "",
        "podLogsDir": f"{node.run}/podlogs",
        "volumePluginDir": f"{node.run}/plugins",
        "evictionHard": {
            "memory.available": "200Mi",
            **dict.fromkeys(("nodefs.available", "nodefs.inodesFree"), "1%"),
            **dict.fromkeys(("imagefs.available", "imagefs.inodesFree"), "1%"),
        },
        # Loaded images have no registry to come back from: never collect them.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        "makeIPTablesUtilChains": False,
        "maxPods": 110,
    }
    return json.dumps(config, indent=2)


def kube_proxy(layout: Layout) -> str:
    """One proxy for all nodes, since they share a network. Its default of 1 s between syncs is felt by every test."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": "node1",
        "clientConnection": {"kubeconfig": str(layout.pki / "kube-proxy.kubeconfig")},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
        "iptables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
    return json.dumps(config, indent=2)


def corefile(layout: Layout) -> str:
    """Names of the cluster are answered, every other name does not exist: nothing is asked outside."""
    return f"""{CLUSTER_DOMAIN}:53 in-addr.arpa:53 {{
    bind {DNS_ADDRESS}
    errors
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {layout.pki}/coredns.kubeconfig local
        ttl 1
    }}
}}
.:53 {{
    bind {DNS_ADDRESS}
    errors
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def first_objects() -> list[tuple[str, dict[str, Any]]]:
    """(API path, object) of what every cluster holds from the start: DNS rights and the default StorageClass."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
    }
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": default},
        "provisioner": STORAGE_PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }
    return [
        (f"{rbac}/clusterroles", role),
        (f"{rbac}/clusterrolebindings", binding),
        ("/apis/storage.k8s.io/v1/storageclasses", storage),
    ]
