"""The images of one node's containerd, through its own client `ctr`."""

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from . import configs
from .errors import ClusterError
from .layout import Node
from .namespaces import wait_until
from .oci import Blob, Image, Library, archive_images

# Bytes. Below, a blob is copied: that costs less than a call of `ctr`.
_LARGE = 8_000_000
_ATTEMPTS = 5


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
        """Give the node what it lacks of `image`; False if it has it already."""
        if self.images().get(image.reference) == image.manifest.digest:
            return False
        large = [blob for blob in image.blobs if blob.size > _LARGE]
        small = library.archive(image, without=large)
        # Until the image names them, nothing holds the adopted blobs, and a collection may take them: try again then.
        for attempt in range(_ATTEMPTS):
            for blob in large:
                self._adopt(blob, library.path(blob))
            done = self._import(small)
            if done.returncode == 0 or attempt == _ATTEMPTS - 1:
                self._check(done, image.reference)
                break
        self._forget_replaced()
        return True

    def _forget_replaced(self) -> None:
        """Let go of images whose name went to a newer one; the kubelet's name for them, a digest, still holds them."""
        images = self.images()
        named = {digest for name, digest in images.items() if not name.startswith("sha256:")}
        replaced = [name for name, digest in images.items() if digest not in named]
        if replaced:
            self._run("images", "rm", *replaced)

    def _adopt(self, blob: Blob, path: Path) -> None:
        """Make a blob of the library one of the store by a hard link: nothing is copied, the disk holds it once.

        containerd finds it there when it is told to take in a blob of that digest; otherwise it would read the file.
        """
        target = self._node.store / "io.containerd.content.v1.content" / "blobs" / "sha256" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            target.hardlink_to(path)
        expected = ["--expected-digest", blob.digest, "--expected-size", str(blob.size)]
        command = [*self._ctr, "content", "ingest", *expected, f"adopt-{path.name}"]
        with path.open("rb") as file:
            self._check(subprocess.run(command, stdin=file, capture_output=True, check=False), path.name)

    def _import(self, archive: bytes | IO[bytes]) -> subprocess.CompletedProcess[bytes]:
        command = [*self._ctr, "images", "import", "-"]
        if isinstance(archive, bytes):
            return subprocess.run(command, input=archive, capture_output=True, check=False)
        return subprocess.run(command, stdin=archive, capture_output=True, check=False)

    def load_archive(self, path: Path) -> bool:
        """Import a tar that `docker save` or another builder wrote; False if its images are there already."""
        named = archive_images(path)
        if named and named.items() <= self.images().items():
            return False
        with path.open("rb") as archive:
            self._check(self._import(archive), str(path))
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
        done = subprocess.run([*self._ctr, *arguments], capture_output=True, check=False)
        self._check(done, " ".join(arguments))
        return done.stdout.decode()

    def _check(self, done: subprocess.CompletedProcess[bytes], what: str) -> None:
        if done.returncode != 0:
            raise ClusterError(f"containerd of {self._node.name} refused {what}: {done.stderr.decode().strip()}")
