"""The cluster that tests and the demo use: the one that `KUBECONFIG` names, or else the local one, made if need be."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[1] / "cluster"
sys.path.append(str(_FOLDER))

from local_cluster import lifecycle  # noqa: E402 (found through the line above, whoever imports this module)
from local_cluster.errors import ClusterError  # noqa: E402
from local_cluster.layout import Layout  # noqa: E402

LOCAL_CLUSTER = _FOLDER / "cluster"


class ClusterAccessError(Exception):
    """The cluster could not be reached or refused a command; the text says which command and why."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up. `prefix` turns a command into one that runs in the cluster's network."""

    name: str
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def is_local(self) -> bool:
        return bool(self.prefix)

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 (as in subprocess)
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and wait; with `check`, a failure raises ClusterAccessError with kubectl's own words."""
        done = self.run_in_network(["kubectl", *arguments], input=input)
        if check and done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip() or "nothing"
            raise ClusterAccessError(f"kubectl {' '.join(arguments)} ended with {done.returncode} and said: {said}")
        return done

    def run_in_network(
        self,
        command: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002 (as in subprocess)
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command where Services and pods answer; output is captured, the exit code is the caller's to judge."""
        return subprocess.run(
            self.in_network(command),
            env=dict(self.environment),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def in_network(self, command: Sequence[str]) -> list[str]:
        """The same command made to run in the cluster's network, for callers with their own Popen."""
        return [*self.prefix, *command]

    def load_image(self, image: str) -> None:
        """Give an image (a name that was built here, or an archive's path) to every node of the local cluster."""
        if not self.is_local:
            raise ClusterAccessError(f"{self.name} takes its images from a registry: push {image} there.")
        with _explained():
            lifecycle.load_image(Layout.of_user(), image)


def cluster_in_use(*, nodes: int = 2, gpus: int = 0) -> Cluster:
    """The user's cluster if `KUBECONFIG` is set (nothing is built then), or else the local one, up and Ready.

    Raises ClusterAccessError with one sentence that says what to do.
    """
    named = os.environ.get("KUBECONFIG")
    if named and Path(named) != Layout.of_user().kubeconfig:
        if shutil.which("kubectl") is None:
            raise ClusterAccessError(f"KUBECONFIG names {named}, but there is no kubectl on PATH.")
        return Cluster(name=named)
    with _explained():
        lifecycle.up(Layout.of_user(), nodes, gpus)
    return Cluster(name="the local cluster", prefix=(sys.executable, str(LOCAL_CLUSTER), "exec", "--"))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        raise ClusterAccessError(str(error)) from error
