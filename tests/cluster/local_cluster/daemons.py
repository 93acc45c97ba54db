"""Command line of every daemon. Pure: flags only, nothing is started here."""

from dataclasses import dataclass

from .layout import API_PORT, SERVICE_CIDR, Layout, Node

DEVICE_PLUGINS = "/var/lib/kubelet/device-plugins"
ETCD_URL = "http://127.0.0.1:2379"
# The controllers' default of 20 requests a second makes a fresh cluster wait five seconds for them.
_CLIENT_RATE = ["--kube-api-qps=300", "--kube-api-burst=600"]


@dataclass(frozen=True)
class Daemon:
    """One process: `name` is also its log file's name."""

    name: str
    argv: tuple[str, ...]


def etcd(layout: Layout) -> Daemon:
    """No fsync: the data live only as long as the cluster."""
    peer = "http://127.0.0.1:2380"
    flags = {
        "--name": "local",
        "--data-dir": str(layout.run / "etcd"),
        "--listen-client-urls": ETCD_URL,
        "--advertise-client-urls": ETCD_URL,
        "--listen-peer-urls": peer,
        "--initial-advertise-peer-urls": peer,
        "--initial-cluster": f"local={peer}",
    }
    return Daemon("etcd", ("etcd", "--unsafe-no-fsync", *(f"{flag}={value}" for flag, value in flags.items())))


def apiserver(layout: Layout) -> Daemon:
    pki = layout.pki
    flags = [
        f"--etcd-servers={ETCD_URL}",
        f"--secure-port={API_PORT}",
        "--bind-address=0.0.0.0",
        "--advertise-address=10.254.0.1",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--token-auth-file={pki}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        "--allow-privileged=true",
    ]
    return Daemon("kube-apiserver", ("kube-apiserver", *flags))


def controller_manager(layout: Layout) -> Daemon:
    pki = layout.pki
    flags = [
        *_own_kubeconfig(layout, "kube-controller-manager"),
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--use-service-account-credentials=true",
        *_CLIENT_RATE,
    ]
    return Daemon("kube-controller-manager", ("kube-controller-manager", *flags))


def scheduler(layout: Layout) -> Daemon:
    return Daemon("kube-scheduler", ("kube-scheduler", *_own_kubeconfig(layout, "kube-scheduler"), *_CLIENT_RATE))


def kube_proxy(layout: Layout) -> Daemon:
    return Daemon("kube-proxy", ("kube-proxy", f"--config={layout.run}/kube-proxy.json"))


def coredns(layout: Layout) -> Daemon:
    return Daemon("coredns", ("coredns", "-conf", str(layout.run / "Corefile")))


def containerd(node: Node) -> Daemon:
    return Daemon(f"containerd-{node.name}", ("containerd", "--config", str(node.run / "containerd.toml")))


def kubelet(layout: Layout, node: Node) -> Daemon:
    flags = [
        f"--config={node.run}/kubelet.json",
        f"--kubeconfig={layout.pki}/{node.name}.kubeconfig",
        f"--root-dir={node.run}/kubelet",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]
    return Daemon(f"kubelet-{node.name}", (*_with_own_device_plugins(node), "kubelet", *flags))


def _with_own_device_plugins(node: Node) -> tuple[str, ...]:
    """Give the kubelet its own folder for device plugins, whose place is fixed; all other mounts stay shared."""
    mounts = f'mount --make-private /var && mount --bind {node.run}/device-plugins {DEVICE_PLUGINS} && exec "$0" "$@"'
    return ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", mounts)


def _own_kubeconfig(layout: Layout, name: str) -> list[str]:
    path = layout.pki / f"{name}.kubeconfig"
    purposes = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return [*(f"--{purpose}={path}" for purpose in purposes), "--leader-elect=false", "--bind-address=127.0.0.1"]
