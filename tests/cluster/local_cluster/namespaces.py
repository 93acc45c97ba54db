"""The cluster's processes as one unit: a set of namespaces whose first process takes every other with it when it ends.

The record of a running cluster holds the start time of its first process beside its number, so that a number used
again by another process, after a crash or a reboot, is never mistaken for the cluster.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import ClusterError
from .layout import Layout

_UNSHARE = "--mount --net --pid --uts --ipc --fork --mount-proc --kill-child=SIGKILL --propagation private"
_MODULE = "local_cluster.supervisor"
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Running:
    """A started cluster: the launcher's and the first process's numbers outside, and what was asked for."""

    launcher: int
    init: int
    started: str
    nodes: int
    gpus: int
    source: str


def record_path(layout: Layout) -> Path:
    return layout.run / "cluster.json"


def running(layout: Layout) -> Running | None:
    """The cluster that the record names, if its first process still lives."""
    try:
        record = Running(**json.loads(record_path(layout).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return record if _start_time(record.init) == record.started else None


def launch(layout: Layout, arguments: list[str], listener: int, environment: dict[str, str]) -> tuple[int, int]:
    """Start the supervisor as the first process of new namespaces; returns the launcher's and its number.

    `listener` is an open socket that stays in the caller's network namespace and is handed down.
    """
    layout.logs.mkdir(parents=True, exist_ok=True)
    command = ["unshare", *_UNSHARE.split(), sys.executable, "-m", _MODULE, *arguments]
    with (layout.logs / "supervisor.log").open("wb") as log:
        launcher = subprocess.Popen(
            command,
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[listener],
            start_new_session=True,
        )
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    if not wait_until(lambda: launcher.poll() is not None or children.read_text().strip() != "", 10, 0.02):
        launcher.kill()
    if launcher.poll() is not None:
        raise ClusterError(f"New namespaces were refused: {(layout.logs / 'supervisor.log').read_text().strip()}")
    launcher.returncode = 0  # it outlives this program on purpose; Popen would warn about a child left running
    return launcher.pid, int(children.read_text().split()[0])


def remember(layout: Layout, launched: tuple[int, int], nodes: int, gpus: int, source: str) -> None:
    launcher, init = launched
    record = Running(launcher, init, _start_time(init) or "", nodes, gpus, source)
    record_path(layout).write_text(json.dumps(asdict(record)))


def end(layout: Layout) -> bool:
    """End the cluster, even one that a killed `up` left unrecorded, and wait until it is gone; False for none there."""
    found = _supervisors(layout)
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    if not wait_until(lambda: not _supervisors(layout), 20, 0.05):
        raise ClusterError(f"Processes {_supervisors(layout)} of the cluster do not end: the kernel holds them.")
    return bool(found)


def _supervisors(layout: Layout) -> list[int]:
    """The launcher and the processes of our module for this cache folder; all others end with them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text(errors="replace").split("\0")
            if _MODULE in words and str(layout.cache) in words and _start_time(int(process.name)):
                found.append(int(process.name))
    return found


def remove_cgroups(name: str) -> bool:
    """Remove the cgroups that pods left behind under `name`; False while the kernel still holds one."""
    for _ in range(50):
        left = [root / name for root in (_CGROUPS, *_CGROUPS.glob("*/")) if (root / name).exists()]
        if not left:
            return True
        for top in left:
            for folder in (*sorted(top.rglob("*/"), key=lambda path: len(path.parts), reverse=True), top):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        time.sleep(0.05)
    return False


def make_cgroups(names: list[str]) -> None:
    """Make `names`, parents first, in every controller's hierarchy (v1), or in the only one with its controllers on."""
    for root in _hierarchies():
        for name in names:
            folder = root / name
            if root == _CGROUPS:
                _enable_controllers(folder.parent)
            folder.mkdir(parents=True, exist_ok=True)
            if root.name == "cpuset":
                _inherit_cpus(folder)


def _hierarchies() -> list[Path]:
    """cgroup v2 has one; v1 has one per controller, beside which `unified` holds no controllers."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    mounted = [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
    return [path for path in mounted if path.name != "unified"]


def _enable_controllers(folder: Path) -> None:
    for controller in (folder / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _inherit_cpus(folder: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        (folder / name).write_text((folder.parent / name).read_text())


def enter(record: Running) -> list[str]:
    """Prefix of a command that runs in the cluster's network namespace, everything else unchanged."""
    return ["nsenter", "--target", str(record.init), "--net"]


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def _start_time(process: int) -> str | None:
    """Clock ticks from boot to the start of the process, or None if there is none (a zombie counts as none)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{fields[19]} {boot}"
