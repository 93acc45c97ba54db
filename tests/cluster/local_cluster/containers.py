"""The images of one node's containerd, through its own client `ctr`."""

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import configs
from .errors import ClusterError
from .layout import Node
from .namespaces import wait_until
from .oci import Image, Library, archive_images


class Store:
    """`prefix` enters the cluster's mount namespace; empty for a caller inside it."""

    def __init__(self, node: Node, prefix: Sequence[str] = ()) -> None:
        self._node = node
        self._ctr = [*prefix, "ctr", "--address", node.containerd_socket, "--namespace", "k8s.io"]

    def answers(self) -> bool:
        return subprocess.run([*self._ctr, "version"], capture_output=True, check=False).returncode == 0

    def images(self) -> dict[str, str]:
        """Reference → manifest digest of every image."""
        rows = [line.split() for line in self._run("images", "ls").splitlines()[1:]]
        return {row[0]: row[2] for row in rows}

    def load(self, image: Image, library: Library) -> bool:
        """Send what the node lacks of `image`; False if it has it already."""
        if self.images().get(image.reference) == image.manifest.digest:
            return False
        present = set(self._run("content", "ls", "--quiet").split())
        command = [*self._ctr, "images", "import", "-"]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(command, stdin=pipe, stdout=nowhere, stderr=pipe) as importing:
            assert importing.stdin is not None
            assert importing.stderr is not None
            # A server that stops reading says why on stderr.
            with contextlib.suppress(BrokenPipeError), importing.stdin:
                library.write_archive(image, importing.stdin, present)
            reason = importing.stderr.read().decode()
        self._check(importing.returncode, image.reference, reason)
        return True

    def load_archive(self, path: Path) -> bool:
        """Import a tar that `docker save` or another builder wrote; False if its images are there already."""
        named = archive_images(path)
        if named and named.items() <= self.images().items():
            return False
        with path.open("rb") as archive:
            command = [*self._ctr, "images", "import", "-"]
            done = subprocess.run(command, stdin=archive, capture_output=True, text=True, check=False)
        self._check(done.returncode, str(path), done.stderr)
        return True

    def clear_containers(self, log: Path) -> None:
        """Forget the containers of an earlier run but keep the images; a store that cannot be read is emptied."""
        if not self._node.store.exists():
            return
        config = self._node.run / "clear.toml"
        config.write_text(configs.containerd(self._node, with_cri=False))
        with log.open("ab") as output:
            server = subprocess.Popen(["containerd", "--config", str(config)], stdout=output, stderr=output)
        readable = wait_until(lambda: self.answers() or server.poll() is not None, 20) and server.poll() is None
        if readable:
            containers = self._run("containers", "ls", "--quiet").split()
            readable = not containers or self._try("containers", "rm", *containers)
        server.kill()
        server.wait()
        if not readable:
            shutil.rmtree(self._node.store)

    def _try(self, *arguments: str) -> bool:
        return subprocess.run([*self._ctr, *arguments], capture_output=True, check=False).returncode == 0

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._ctr, *arguments], capture_output=True, text=True, check=False)
        self._check(done.returncode, " ".join(arguments), done.stderr)
        return done.stdout

    def _check(self, code: int, what: str, reason: str) -> None:
        if code != 0:
            raise ClusterError(f"containerd of {self._node.name} refused {what}: {reason.strip()}")
