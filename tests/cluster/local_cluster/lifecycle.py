"""Up, down and everything that needs a cluster that is up."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from . import host, namespaces, programs
from .api import Api, Object, Unavailable
from .containers import Store
from .errors import ClusterError
from .images.basic import basic_images
from .layout import FORWARD_PORT, Layout
from .namespaces import Running, wait_until
from .oci import Library
from .pki import write_pki
from .progress import Progress

_UP_SECONDS = 240
_PACKAGE_ROOT = Path(__file__).parent.parent


def up(layout: Layout, nodes: int, gpus: int) -> None:
    """Bring the cluster up from whatever state an earlier run left; do nothing if it is up and well."""
    host.require_root()
    with _alone(layout):
        current = namespaces.running(layout)
        if current and _is_well(layout, current):
            _require_same(current, nodes, gpus)
            print(f"The cluster is up already: {current.nodes} node(s).")
            return
        _prepare(layout)
        namespaces.end(layout)
        _clear(layout)
        with Progress(f"Starting Kubernetes with {nodes} node(s)") as progress:
            _start(layout, nodes, gpus, progress)


def down(layout: Layout, *, purge: bool) -> None:
    """End every process and remove every trace but the cache; with `purge`, the images too."""
    host.require_root()
    with _alone(layout):
        was_up = namespaces.end(layout)
        _clear(layout)
        if purge:
            for folder in (layout.stores, layout.images):
                shutil.rmtree(folder, ignore_errors=True)
    print("The cluster is down." if was_up else "No cluster was up.")


def require_running(layout: Layout) -> Running:
    """The running cluster, or the sentence that says how to get one."""
    current = namespaces.running(layout)
    if current is None:
        raise ClusterError("No local cluster is up: start it with tests/cluster/cluster up.")
    return current


def node_objects(layout: Layout) -> list[Object]:
    """The Node objects, or none while the API server does not answer."""
    try:
        nodes: list[Object] = Api(layout.kubeconfig).get("/api/v1/nodes")["items"]
    except Unavailable:
        return []
    return nodes


def is_ready(node: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node.get("status", {}).get("conditions", []))


def load_image(layout: Layout, source: str) -> None:
    """Give every node the image: a reference that was built here, or the path of an archive."""
    host.require_root()
    current = require_running(layout)
    library = Library(layout.images)
    image = library.find(source)
    if image is None and not Path(source).is_file():
        known = ", ".join(library.references())
        raise ClusterError(f"{source} is neither an archive's path nor an image that was built here ({known}).")
    prefix = ["nsenter", "--target", str(current.init), "--mount"]
    stores = [Store(node, prefix) for node in layout.nodes(current.nodes)]

    def load(store: Store) -> bool:
        return store.load(image, library) if image else store.load_archive(Path(source))

    with ThreadPoolExecutor(len(stores)) as pool, Progress(f"Loading {source}") as progress:
        loads = [pool.submit(load, store) for store in stores]
        while not wait_until(lambda: all(done.done() for done in loads), 0.2, 0.05):
            progress.show(f"{sum(done.done() for done in loads)}/{len(loads)} nodes")
        if not any(done.result() for done in loads):
            progress.note("every node has it already")


def run_inside(layout: Layout, command: list[str]) -> None:
    """Become `command`, in the cluster's network, with its kubectl and kubeconfig."""
    host.require_root()
    current = require_running(layout)
    environment = {**_environment(layout), "KUBECONFIG": str(layout.pki / "admin.kubeconfig")}
    prefix = namespaces.enter(current)
    os.execvpe(prefix[0], [*prefix, *command], environment)


def _prepare(layout: Layout) -> None:
    host.require_packages()
    host.require_plain_file_system(_made(layout.cache))
    host.require_disk(layout.cache, 2, "The cluster")
    programs.build(layout)
    basic_images(layout)


def _start(layout: Layout, nodes: int, gpus: int, progress: Progress) -> None:
    with _listener() as listener:
        write_pki(layout, layout.nodes(nodes), listener.getsockname()[1])
        arguments = [str(layout.cache), str(nodes), str(gpus), str(listener.fileno())]
        launched = namespaces.launch(layout, arguments, listener.fileno(), _environment(layout))
    namespaces.remember(layout, launched, nodes, gpus, str(_PACKAGE_ROOT))
    ready, failed = layout.run / "ready", layout.run / "failed"
    try:
        settled = _wait_showing(layout, lambda: ready.exists() or _ended(layout), progress)
    except BaseException:
        namespaces.end(layout)
        raise
    if not ready.exists():
        namespaces.end(layout)
        reason = json.loads(failed.read_text()) if failed.exists() else {}
        raise ClusterError(_explain(layout, reason, settled))


def _wait_showing(layout: Layout, condition: Callable[[], bool], progress: Progress) -> bool:
    timeline = layout.logs / "timeline.log"

    def settled() -> bool:
        with contextlib.suppress(OSError, IndexError):
            progress.show(timeline.read_text().splitlines()[-1].split("  ", 1)[-1].strip())
        return condition()

    return wait_until(settled, _UP_SECONDS)


def _ended(layout: Layout) -> bool:
    return (layout.run / "failed").exists() or namespaces.running(layout) is None


def _explain(layout: Layout, failure: dict[str, str], settled: bool) -> str:
    """The component, why, its last lines, and where the rest is."""
    component = failure.get("component", "supervisor")
    reason = failure.get("reason", "it ended without a word" if settled else f"not up within {_UP_SECONDS} s")
    log = layout.logs / f"{component}.log"
    last = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
    quoted = "".join(f"\n    {line[:200]}" for line in last)
    return f"The cluster did not come up: {component}: {reason}. Its last lines ({log}):{quoted}"


def _is_well(layout: Layout, current: Running) -> bool:
    """Whether every node is Ready; a daemon that has just been started again gets 20 seconds."""
    if not (layout.run / "ready").exists():
        return False
    return wait_until(lambda: sum(map(is_ready, node_objects(layout))) == current.nodes, 20, 0.5)


def _require_same(current: Running, nodes: int, gpus: int) -> None:
    if (current.nodes, current.gpus) != (nodes, gpus):
        raise ClusterError(
            f"The cluster is up with {current.nodes} node(s) and {current.gpus} GPUs each, not {nodes} and {gpus}: "
            "end it first with tests/cluster/cluster down."
        )


def _clear(layout: Layout) -> None:
    if not namespaces.remove_cgroups(layout.cgroup):
        raise ClusterError(f"The cgroup {layout.cgroup} cannot be removed: a process is still in it.")
    shutil.rmtree(layout.run, ignore_errors=True)
    if layout.run.exists():
        raise ClusterError(f"{layout.run} cannot be removed: something is still mounted there or uses it.")


def _environment(layout: Layout) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    path = f"{layout.bin}:{host.search_path()}"
    return {**own, "PATH": path, "PYTHONPATH": f"{_PACKAGE_ROOT}:{own.get('PYTHONPATH', '')}".rstrip(":")}


def _listener() -> socket.socket:
    """A socket for the API server outside the cluster's network; any port if the usual one is taken."""
    try:
        return socket.create_server(("127.0.0.1", FORWARD_PORT))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Hold the lock under which the cluster goes up or down."""
    _made(layout.cache)
    with (layout.cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another up or down is at work; waiting for it.", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
