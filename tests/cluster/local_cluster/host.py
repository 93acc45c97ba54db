"""What the machine must have, checked before anything is started; each lack is one sentence with its remedy."""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import ClusterError
from .progress import Progress

GO_MINIMUM = (1, 25)
# Debian package → a program it brings (looked up on PATH and in the folders that only root has there).
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "iproute2": "ip",
    "openssl": "openssl",
    "busybox-static": "busybox",
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdio.h",
    "util-linux": "unshare",
    "procps": "sysctl",
}
COMPILER = {name: PACKAGES[name] for name in ("gcc", "libc6-dev")}
_SYSTEM_PATH = "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path() -> str:
    """PATH with the system's folders behind it, for a caller whose own PATH is short."""
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")


def find(program: str) -> str | None:
    return shutil.which(program, path=search_path())


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError(
            "The local Kubernetes makes namespaces and mounts: run this as root (for example with sudo)."
        )


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return folder if folder.exists() else existing(folder.parent)


def require_disk(folder: Path, gigabytes: float, purpose: str) -> None:
    """Raise unless the file system of `folder` has `gigabytes` (of 1e9 bytes) free."""
    free = shutil.disk_usage(existing(folder)).free / 1e9
    if free < gigabytes:
        wanted = f"{purpose} needs {gigabytes:.0f} GB free under {folder}, and there are {free:.1f} GB"
        raise ClusterError(f"{wanted}: free some, or point XDG_CACHE_HOME to a larger disk.")


def require_plain_file_system(folder: Path) -> None:
    """containerd's overlay mounts cannot lie on an overlay themselves."""
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False
    ).stdout.strip()
    if found in {"overlayfs", "tmpfs", "nfs", "fuseblk"}:
        raise ClusterError(
            f"The nodes' images cannot be kept on {found} ({folder}): point XDG_CACHE_HOME to a folder on ext4 or xfs."
        )


def require_go() -> str:
    """Path of a Go that is new enough."""
    go = find("go")
    if go is None:
        raise ClusterError("Compiling Kubernetes needs Go 1.25 or newer: install it, or put it on PATH.")
    text = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"go(\d+)\.(\d+)", text)
    if version is None or (int(version[1]), int(version[2])) < GO_MINIMUM:
        raise ClusterError(f"Compiling Kubernetes needs Go 1.25 or newer, and {go} is {text.strip() or 'unusable'}.")
    return go


def missing_packages(packages: Mapping[str, str] = PACKAGES) -> list[str]:
    return [name for name, file in packages.items() if not (Path(file).exists() if file[0] == "/" else find(file))]


def require_packages(packages: Mapping[str, str] = PACKAGES) -> None:
    """Install what is missing with apt-get, saying so; raise where that is not possible.

    Programs and images may be built at the same time: the second waits here for the first.
    """
    if not missing_packages(packages):
        return
    with Path(tempfile.gettempdir(), "dsv3-local-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if missing := missing_packages(packages):
            _install(missing)


def _install(missing: list[str]) -> None:
    command = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if find("apt-get") is None:
        raise ClusterError(f"Some programs are missing; on Debian they come with: {command}")
    if os.geteuid() != 0:
        raise ClusterError(f"Some programs are missing, and only root can install them: {command}")
    with Progress(f"Installing {', '.join(missing)}"):
        if not (_apt("install", *missing) or (_apt("update") and _apt("install", *missing))):
            raise ClusterError(f"apt-get could not install what is missing; try it by hand: {command}")


def _apt(verb: str, *names: str) -> bool:
    flags = ["-q", "-y"] if verb == "update" else ["-q", "-y", "--no-install-recommends"]
    environment = {**os.environ, "PATH": search_path(), "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", verb, *flags, *names], env=environment, capture_output=True, check=False)
    return done.returncode == 0
