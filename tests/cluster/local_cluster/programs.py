"""Compile the programs from their Go modules, once: a stamp beside each says from which sources it came."""

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError
from .host import COMPILER, require_disk, require_go, require_packages, search_path
from .layout import COREDNS_VERSION, ETCD_VERSION, HELM_VERSION, KUBERNETES_VERSION, Layout
from .progress import Progress

SOURCES = Path(__file__).parent.parent / "programs"
_KUBERNETES_NAMES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
)


@dataclass(frozen=True)
class Program:
    """A Go module under `programs/`. `gigabytes`: what compiling it cold leaves on the disk."""

    name: str
    title: str
    gigabytes: float
    package: str = "."
    linker_flags: str = ""
    links: tuple[str, ...] = ()


def _kubernetes_version_flags() -> str:
    """Without these the programs call themselves v0.0.0, which version checks of clients refuse."""
    _, minor, _ = KUBERNETES_VERSION.split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": "1", "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())


KUBERNETES = Program(
    "kubernetes", f"Kubernetes {KUBERNETES_VERSION}", 6, ".", _kubernetes_version_flags(), _KUBERNETES_NAMES
)
ETCD = Program("etcd", f"etcd {ETCD_VERSION}", 1)
COREDNS = Program("coredns", f"CoreDNS {COREDNS_VERSION}", 1)
HELM = Program(
    "helm",
    f"Helm {HELM_VERSION}",
    1,
    "helm.sh/helm/v3/cmd/helm",
    f"-X helm.sh/helm/v3/internal/version.version={HELM_VERSION}",
)
CLUSTER_PROGRAMS = (KUBERNETES, ETCD, COREDNS)
ALL_PROGRAMS = {program.name: program for program in (*CLUSTER_PROGRAMS, HELM)}


def fingerprint(program: Program, sources: Path = SOURCES) -> str:
    """Hash over the module's files and the flags: what the stamp must say."""
    digest = hashlib.sha256(f"{program.package} {program.linker_flags} {program.links}".encode())
    for path in sorted((sources / program.name).iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def is_built(layout: Layout, program: Program) -> bool:
    stamp = layout.bin / f"{program.name}.stamp"
    return stamp.exists() and stamp.read_text() == fingerprint(program) and (layout.bin / program.name).exists()


def build(layout: Layout, programs: tuple[Program, ...] = CLUSTER_PROGRAMS) -> None:
    """Compile those programs whose stamp does not match; two callers at once build one after the other."""
    if all(is_built(layout, program) for program in programs):
        return
    layout.bin.mkdir(parents=True, exist_ok=True)
    with _building(layout):
        wanted = [program for program in programs if not is_built(layout, program)]
        if wanted:
            require_packages(COMPILER)
            go = require_go()
            require_disk(layout.bin, sum(p.gigabytes for p in wanted), "Compiling the cluster's programs")
        for program in wanted:
            _compile(layout, program, go)


@contextmanager
def _building(layout: Layout) -> Iterator[None]:
    with (layout.bin / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(layout: Layout, program: Program, go: str) -> None:
    folder, log = SOURCES / program.name, layout.bin / f"{program.name}.log"
    environment = {**os.environ, "PATH": search_path(), "CGO_ENABLED": "1", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    target = layout.bin / f"{program.name}.new"
    flags = ["-v", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {program.linker_flags}"]
    with Progress(f"Compiling {program.title}") as progress, log.open("w") as output:
        total = _package_count(go, program, folder, environment)
        command = [go, "build", *flags, "-o", str(target), program.package]
        with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr is not None
            for count, line in enumerate(running.stderr, start=1):
                output.write(line)
                progress.show(f"{count}/{total} packages")
    if running.returncode != 0:
        last = " ".join(log.read_text().splitlines()[-3:])
        raise ClusterError(f"{program.title} did not compile: {last} (all of it: {log})")
    _install(layout, program, target)


def _package_count(go: str, program: Program, folder: Path, environment: dict[str, str]) -> str:
    """How many packages there are to compile; as a side effect the modules are fetched."""
    command = [go, "list", "-deps", program.package]
    listed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        reason = listed.stderr.strip().splitlines()[-1:]
        raise ClusterError(f"The Go modules of {program.title} could not be fetched: {' '.join(reason)}")
    return str(len(listed.stdout.splitlines()))


def _install(layout: Layout, program: Program, target: Path) -> None:
    target.replace(layout.bin / program.name)
    for name in program.links:
        link = layout.bin / name
        link.unlink(missing_ok=True)
        link.symlink_to(program.name)
    (layout.bin / f"{program.name}.stamp").write_text(fingerprint(program))
