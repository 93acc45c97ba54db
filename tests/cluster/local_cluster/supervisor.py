"""Runs inside the namespaces: the first process reaps orphans, its child brings the cluster up and keeps it running.

The outcome is one of two files in the run folder: `ready`, or `failed` with the component and the reason.
A daemon that ends is started again, as an init system would.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from . import addons, configs, daemons, forward, namespaces
from .api import Api, Unavailable
from .containers import Store
from .daemons import Daemon
from .errors import ClusterError
from .images.basic import basic_images
from .layout import API_PORT, BALANCER_CIDR, SERVICE_CIDR, Layout, Node
from .namespaces import wait_until
from .oci import Library
from .pki import API_SERVER


class NotUpError(Exception):
    """A component did not become ready."""

    def __init__(self, component: str, reason: str) -> None:
        super().__init__(f"{component}: {reason}")
        self.component, self.reason = component, reason


class Supervisor:
    """Starts daemons and starts them again when they end."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._daemons: dict[Daemon, subprocess.Popen[bytes]] = {}
        self._started = time.monotonic()

    def log(self, text: str) -> None:
        """One line of the timeline, with seconds since the start."""
        with (self._layout.logs / "timeline.log").open("a") as log:
            log.write(f"{time.monotonic() - self._started:7.2f} s  {text}\n")

    def start(self, daemon: Daemon) -> None:
        with (self._layout.logs / f"{daemon.name}.log").open("ab") as log:
            self._daemons[daemon] = subprocess.Popen(daemon.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.log(f"start {daemon.name}")

    def wait(self, component: str, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for `condition`; a component that ended meanwhile is named at once."""
        ended = False

        def settled() -> bool:
            nonlocal ended
            ended = any(d.name == component and p.poll() is not None for d, p in self._daemons.items())
            return ended or condition()

        if not wait_until(settled, seconds):
            raise NotUpError(component, f"{what} not within {seconds:.0f} s")
        if ended:
            raise NotUpError(component, "it ended while starting")
        self.log(f"{component}: {what}")

    def keep(self) -> None:
        """For ever: start again what ended, after a pause so that a broken daemon does not spin."""
        while True:
            time.sleep(1)
            for daemon, process in list(self._daemons.items()):
                if process.poll() is not None:
                    self.log(f"{daemon.name} ended with {process.returncode}")
                    self.start(daemon)


def isolate(layout: Layout, nodes: list[Node]) -> None:
    """Private mounts, one private network without a way out, cgroups of our own."""
    upper, work = layout.run / "var" / "upper", layout.run / "var" / "work"
    for folder in (upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    commands = [
        "mount --make-rprivate /",
        f"mount -t overlay var -o lowerdir=/var,upperdir={upper},workdir={work} /var",
        "mount -t tmpfs run /run",
        "mount --make-rshared /",
        f"hostname {nodes[0].name}",
        "ip link set lo up",
        *(f"ip address add {node.address}/32 dev lo" for node in nodes),
        f"ip route add {SERVICE_CIDR} dev lo",
        f"ip route add local {BALANCER_CIDR} dev lo",
        "sysctl -qw net.ipv4.ip_forward=1",
    ]
    for command in commands:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotUpError("supervisor", f"`{command}` failed: {done.stderr.strip()}")
    Path(daemons.DEVICE_PLUGINS).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")
    namespaces.make_cgroups([layout.cgroup, *(node.cgroup for node in nodes)])


def write_configs(layout: Layout, nodes: list[Node]) -> None:
    (layout.run / "kube-proxy.json").write_text(configs.kube_proxy(layout))
    (layout.run / "Corefile").write_text(configs.corefile(layout))
    for node in nodes:
        for folder in ("cni", "device-plugins"):
            (node.run / folder).mkdir(parents=True, exist_ok=True)
        (node.run / "cni" / "10-bridge.conflist").write_text(configs.cni(node))
        (node.run / "kubelet.json").write_text(configs.kubelet(layout, node))


def bring_up(supervisor: Supervisor, layout: Layout, nodes: list[Node], gpus: int) -> None:
    """Everything in order; what does not depend on each other runs side by side."""
    isolate(layout, nodes)
    write_configs(layout, nodes)
    supervisor.start(daemons.etcd(layout))
    supervisor.start(daemons.apiserver(layout))
    api = Api(layout.pki / "admin.kubeconfig", API_SERVER)
    with ThreadPoolExecutor(len(nodes)) as pool:
        stores = [pool.submit(_start_containerd, supervisor, layout, node) for node in nodes]
        supervisor.wait("kube-apiserver", lambda: api.is_ok("/readyz"), 90, "answers")
        for daemon in (daemons.controller_manager, daemons.scheduler, daemons.kube_proxy):
            supervisor.start(daemon(layout))
        for path, body in configs.first_objects():
            api.create(path, body)
        supervisor.start(daemons.coredns(layout))
        addons.start(layout, supervisor.log)
        for store in stores:
            store.result()
    for node in nodes:
        supervisor.start(daemons.kubelet(layout, node))
    for node in nodes:
        supervisor.wait(f"kubelet-{node.name}", partial(_is_ready, api, node), 90, "node is Ready")
        _pretend_gpus(api, node, gpus)
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    supervisor.wait("kube-controller-manager", lambda: api.is_ok(account), 30, "made the default ServiceAccount")


def _start_containerd(supervisor: Supervisor, layout: Layout, node: Node) -> None:
    """Clear what an earlier run left, start containerd, load the two images that every cluster has."""
    store = Store(node)
    daemon = daemons.containerd(node)
    store.clear_containers(layout.logs / f"{daemon.name}.log")
    (node.run / "containerd.toml").write_text(configs.containerd(node))
    supervisor.start(daemon)
    supervisor.wait(daemon.name, store.answers, 30, "answers")
    library = Library(layout.images)
    for image in basic_images(layout):
        store.load(image, library)


def _is_ready(api: Api, node: Node) -> bool:
    try:
        conditions = api.get(f"/api/v1/nodes/{node.name}")["status"]["conditions"]
    except Unavailable:
        return False
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _pretend_gpus(api: Api, node: Node, count: int) -> None:
    if count:
        amount = {"nvidia.com/gpu": str(count)}
        api.patch(f"/api/v1/nodes/{node.name}/status", {"status": {"capacity": amount, "allocatable": amount}})


def supervise(layout: Layout, nodes: list[Node], gpus: int, listener: int) -> None:
    """Bring the cluster up, tell the outcome, and keep it running."""
    supervisor = Supervisor(layout)
    try:
        bring_up(supervisor, layout, nodes, gpus)
    except NotUpError as error:
        return _tell(layout, "failed", {"component": error.component, "reason": error.reason})
    except ClusterError as error:
        return _tell(layout, "failed", {"component": "supervisor", "reason": str(error)})
    except Exception as error:
        return _tell(layout, "failed", {"component": "supervisor", "reason": repr(error)})
    # The same port inside and outside: one kubeconfig serves both.
    outside = socket.socket(fileno=listener)
    for socket_ in (outside, socket.create_server(outside.getsockname())):
        forward.start(socket_, nodes[0].address, API_PORT)
    _tell(layout, "ready", {})
    supervisor.log("cluster is up")
    return supervisor.keep()


def _tell(layout: Layout, outcome: str, content: dict[str, str]) -> None:
    draft = layout.run / f"{outcome}.draft"
    draft.write_text(json.dumps(content))
    draft.rename(layout.run / outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cache", "nodes", "gpus", "listener"):
        parser.add_argument(name, type=Path if name == "cache" else int)
    arguments = parser.parse_args()
    layout = Layout(arguments.cache)
    child = os.fork()
    if child == 0:
        supervise(layout, layout.nodes(arguments.nodes), arguments.gpus, arguments.listener)
        os._exit(1)
    while os.wait()[0] != child:
        pass


if __name__ == "__main__":
    main()
