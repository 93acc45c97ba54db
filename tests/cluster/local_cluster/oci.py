"""Container images as files: an OCI layout whose blobs are shared by all images, written without any daemon.

Layers are uncompressed tars, sorted and without times and owners, so that equal folders give equal digests: a node
that has a layer is never sent it again.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_IMAGE_NAME = "io.containerd.image.name"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """`digest` as `sha256:…`, `size` in bytes."""

    digest: str
    size: int

    def described(self, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Image:
    """A named image of the library: its manifest, and all blobs that make it, the manifest among them."""

    reference: str
    manifest: Blob
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        return sum(blob.size for blob in self.blobs)


class Library:
    """The images that were built, as blobs and one small file per reference."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def path(self, blob: Blob) -> Path:
        return self._blobs / blob.digest.removeprefix("sha256:")

    def add_layer(self, root: Path) -> Blob:
        """A layer with what is under `root`; only modes are kept, owners and times are not."""
        draft = self._blobs / f".draft-{os.getpid()}"
        with draft.open("wb") as file:
            hashing = _Hashing(file)
            with tarfile.open(None, "w|", hashing, _CHUNK, format=tarfile.GNU_FORMAT) as tar:
                for path in _sorted_tree(root):
                    _add(tar, path, str(path.relative_to(root)))
        blob = Blob(f"sha256:{hashing.digest.hexdigest()}", draft.stat().st_size)
        draft.rename(self.path(blob))
        return blob

    def add_image(self, reference: str, layers: list[Blob], config: dict[str, Any]) -> Image:
        """Name `layers` (lowest first) and a runtime `config` (Env, User, Cmd …) as an image."""
        body = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
        written = self._add_json(body)
        manifest = self._add_json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": written.described(_CONFIG),
                "layers": [layer.described(_LAYER) for layer in layers],
            }
        )
        image = Image(reference, manifest, (manifest, written, *layers))
        record = {"reference": reference, "blobs": [[blob.digest, blob.size] for blob in image.blobs]}
        (self._folder / f"{quote(reference, safe='')}.json").write_text(json.dumps(record, indent=1))
        return image

    def find(self, reference: str) -> Image | None:
        """The image of that name, if it and all its blobs are there."""
        try:
            record = json.loads((self._folder / f"{quote(reference, safe='')}.json").read_text())
        except OSError:
            return None
        blobs = tuple(Blob(digest, size) for digest, size in record["blobs"])
        return Image(reference, blobs[0], blobs) if all(self.path(blob).exists() for blob in blobs) else None

    def references(self) -> list[str]:
        return sorted(json.loads(path.read_text())["reference"] for path in self._folder.glob("*.json"))

    def prune(self) -> None:
        """Delete blobs that no image uses, such as the code layers of earlier builds."""
        images = [image for reference in self.references() if (image := self.find(reference))]
        used = {self.path(blob) for image in images for blob in image.blobs}
        for path in self._blobs.iterdir():
            if path not in used:
                path.unlink()

    def archive(self, image: Image, without: Collection[Blob] = ()) -> bytes:
        """An OCI archive of the image, less the blobs that the receiver has already."""
        named = {_IMAGE_NAME: image.reference, "org.opencontainers.image.ref.name": image.reference}
        entry = {**image.manifest.described(_MANIFEST), "annotations": named}
        output = io.BytesIO()
        with tarfile.open(None, "w", output) as tar:
            _add_bytes(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            _add_bytes(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
            for blob in image.blobs:
                if blob not in without:
                    tar.add(self.path(blob), f"blobs/sha256/{self.path(blob).name}")
        return output.getvalue()

    def _add_json(self, body: dict[str, Any]) -> Blob:
        data = json.dumps(body, sort_keys=True).encode()
        blob = Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        # Never rewritten: the nodes' stores hold the same file by a hard link.
        if not self.path(blob).exists():
            self.path(blob).write_bytes(data)
        return blob


def archive_images(path: Path) -> dict[str, str] | None:
    """Reference → manifest digest of an OCI archive; None for other archives, which say no digest."""
    with tarfile.open(path) as tar:
        try:
            index = tar.extractfile("index.json")
        except KeyError:
            return None
        entries = json.load(index)["manifests"] if index else []
    digests = {entry.get("annotations", {}).get(_IMAGE_NAME): entry["digest"] for entry in entries}
    return {name: digest for name, digest in digests.items() if name} or None


class _Hashing(io.RawIOBase):
    """A writer that hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _sorted_tree(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir(), key=lambda path: path.name):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _sorted_tree(path)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tar.gettarinfo(path, name)
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    if entry.isreg():
        with path.open("rb") as file:
            tar.addfile(entry, file)
    else:
        tar.addfile(entry)


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
