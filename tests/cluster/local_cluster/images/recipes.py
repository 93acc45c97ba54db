"""The project's two images for the local cluster, layer by layer; a layer is made again only when its inputs change.

Debian with Python   | shared by both
dependencies         | one per extra; changes with pyproject.toml and constraints.txt
kernels              | the runtime's, compiled for x86-64; changes with their C++
project              | shared by both; changes with every line of code, and is small
"""

import fcntl
import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import host
from ..layout import OPERATOR_IMAGE, RUNTIME_IMAGE, Layout
from ..oci import Blob, Image, Library
from ..progress import Progress
from . import debian
from .wheels import KERNELS, REPOSITORY, Wheels

_HERE = Path(__file__).parent
_ENVIRONMENT = [
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "HOME=/tmp",
    "LANG=C.UTF-8",
    "PYTHONUNBUFFERED=1",
    "PYTHONDONTWRITEBYTECODE=1",
]
_LABELS = {
    "org.opencontainers.image.title": "deepseek-v3-operator",
    "org.opencontainers.image.licenses": "Apache-2.0",
}
_ENTRYPOINTS = {OPERATOR_IMAGE: ["dsv3-operator"], RUNTIME_IMAGE: ["dsv3"]}
_EXTRAS = {OPERATOR_IMAGE: "operator", RUNTIME_IMAGE: "runtime"}


def build_images(layout: Layout, references: Iterable[str]) -> list[Image]:
    """Make those of `references` that are not up to date; returns all of them."""
    version = debian.python_version()
    host.require_packages(_tools(version))
    host.require_disk(layout.cache, 4, "Making the images")
    with _alone(layout):
        builder = _Builder(layout, version)
        images = [builder.image(reference) for reference in references]
        builder.library.prune()
    return images


def _tools(version: str) -> dict[str, str]:
    """Packages and the files that they bring, as in host.PACKAGES; Python is the one that the images hold."""
    python = {"python3": f"/usr/bin/python{version}", "python3-venv": f"/usr/lib/python{version}/ensurepip"}
    return {**host.COMPILER, "g++": "g++", "binutils": "strip", "dpkg": "dpkg-deb", **python}


class _Builder:
    def __init__(self, layout: Layout, version: str) -> None:
        self.library = Library(layout.images)
        self._made = layout.images / "layers"
        self._scratch = layout.cache / "scratch"
        for folder in (self._made, self._scratch):
            folder.mkdir(parents=True, exist_ok=True)
        self._version = version
        self._wheels = Wheels(layout, self._version)

    def image(self, reference: str) -> Image:
        extra = _EXTRAS[reference]
        # On another kind of processor the runtime computes with plain torch.
        kernels = [self._kernels] if extra == "runtime" and platform.machine() == "x86_64" else []
        layers = [self._debian, self._dependencies(extra), *kernels, self._project]
        config = {
            "User": f"{debian.USER}:{debian.USER}",
            "Env": _ENVIRONMENT,
            "Entrypoint": _ENTRYPOINTS[reference],
            "WorkingDir": "/tmp",
            "StopSignal": "SIGTERM",
            "Labels": _LABELS,
        }
        return self.library.add_image(reference, layers, config)

    @cached_property
    def _debian(self) -> Blob:
        def make(root: Path) -> None:
            downloads = root.with_name("debs")
            downloads.mkdir()
            debian.unpack(root, self._version, downloads)
            self._wheels.compile(root, root / "usr/lib" / f"python{self._version}")

        return self._layer("debian", [self._version, _HERE / "debian.py"], make)

    def _dependencies(self, extra: str) -> Blob:
        pins = [path for name in ("pyproject.toml", "constraints.txt") if (path := REPOSITORY / name).exists()]
        recipe = [_HERE / "wheels.py", _HERE / "cpu_torch.py"]
        inputs: list[str | Path] = [self._version, extra, *self._wheels.index, *pins, *recipe]
        return self._layer(f"dependencies-{extra}", inputs, lambda root: self._wheels.add_dependencies(root, extra))

    @cached_property
    def _kernels(self) -> Blob:
        folder = REPOSITORY / "runtime" / KERNELS
        sources = [folder / "build.py", *sorted((folder / "src").iterdir())]
        return self._layer("kernels", [self._version, *sources, _HERE / "wheels.py"], self._wheels.add_kernels)

    @cached_property
    def _project(self) -> Blob:
        """Once for all images, so that they hold the same code though someone edits it meanwhile."""
        files = [REPOSITORY / name for name in ("pyproject.toml", "README.md", "LICENSE")]
        for package in ("operator", "runtime"):
            files += [path for path in (REPOSITORY / package).rglob("*") if "__pycache__" not in path.parts]
        inputs: list[str | Path] = [
            self._version,
            *sorted(path for path in files if path.is_file()),
            _HERE / "wheels.py",
        ]
        return self._layer("project", inputs, self._wheels.add_project)

    def _layer(self, name: str, inputs: Sequence[str | Path], make: Callable[[Path], None]) -> Blob:
        """The layer of that name for these inputs, from an earlier run or made now."""
        record, key = self._made / f"{name}.json", _fingerprint(inputs)
        if record.exists():
            known: dict[str, Any] = json.loads(record.read_text())
            blob = Blob(known["digest"], known["size"])
            if known["key"] == key and self.library.path(blob).exists():
                return blob
        with Progress(f"Image layer {name}") as progress, tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            root = Path(scratch, "root")
            root.mkdir(mode=0o755)
            make(root)
            blob = self.library.add_layer(root)
            progress.note(f"{blob.size / 1e6:.0f} MB")
        record.write_text(json.dumps({"key": key, "digest": blob.digest, "size": blob.size}))
        return blob


def _fingerprint(inputs: Sequence[str | Path]) -> str:
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            digest.update(f"{item.name} ".encode() + hashlib.sha256(item.read_bytes()).digest())
        else:
            digest.update(f"{item}\n".encode())
    return digest.hexdigest()


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    layout.images.mkdir(parents=True, exist_ok=True)
    with (layout.images / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
