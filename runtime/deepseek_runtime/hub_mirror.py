"""A small mirror of the model hub, for clusters without a way to the real one and for tests of the download.

It serves `ROOT/<org>/<name>/…` as repositories with one revision, `main`, to the real `huggingface_hub` client. Hashes
are taken once, at the start; bytes are read from disk at each request. A file that changes afterwards is served as it
is now under the hash that it had: exactly the corruption that a client has to notice.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route


@dataclass(frozen=True, slots=True)
class MirroredFile:
    """A file as it was at the start: its size in bytes, its git blob id and its SHA-256."""

    path: Path
    name: str
    size: int
    blob_id: str
    sha256: str

    @property
    def is_lfs(self) -> bool:
        """Weights are what the hub keeps in large-file storage, where the SHA-256 is the identity."""
        return self.name.endswith(".safetensors")

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    def describe(self, name_key: str, blob_key: str, hash_key: str) -> dict[str, Any]:
        """The file in a listing; the hub's two listings differ in three names."""
        entry: dict[str, Any] = {name_key: self.name, "size": self.size, blob_key: self.blob_id}
        if self.is_lfs:
            entry["lfs"] = {hash_key: self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder's files by name; the commit is a hash over their names and contents."""

    name: str
    files: dict[str, MirroredFile]

    @property
    def commit(self) -> str:
        lines = "\n".join(f"{file.name} {file.etag}" for file in self.files.values())
        return hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()

    def has(self, revision: str) -> bool:
        return revision in ("main", self.commit)


def scan(root: Path) -> dict[str, Repository]:
    """Every repository under a folder, by `org/name`, with all hashes taken."""
    folders = sorted(path for path in root.glob("*/*") if path.is_dir())
    return {repo.name: repo for repo in (_scan_repository(root, folder) for folder in folders)}


def _scan_repository(root: Path, folder: Path) -> Repository:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".verified.json")
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    return Repository(folder.relative_to(root).as_posix(), {name: _hash(path, name) for name, path in files.items()})


def _hash(path: Path, name: str) -> MirroredFile:
    size = path.stat().st_size
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            blob.update(chunk)
            sha256.update(chunk)
    return MirroredFile(path, name, size, blob.hexdigest(), sha256.hexdigest())


def build_mirror(repositories: dict[str, Repository]) -> Starlette:
    """The ASGI application that speaks the hub's API for the repositories."""
    mirror = _Mirror(repositories)
    return Starlette(
        routes=[
            Route("/healthz", mirror.health),
            Route("/api/models/{org}/{name}", mirror.info),
            Route("/api/models/{org}/{name}/revision/{revision}", mirror.info),
            Route("/api/models/{org}/{name}/tree/{revision}", mirror.tree),
            Route("/{org}/{name}/resolve/{revision}/{file:path}", mirror.resolve),
        ]
    )


class _Mirror:
    def __init__(self, repositories: dict[str, Repository]) -> None:
        self._repositories = repositories

    async def health(self, _: Request) -> Response:
        return JSONResponse({"repositories": sorted(self._repositories)})

    async def info(self, request: Request) -> Response:
        repository = self._find(request)
        if isinstance(repository, Response):
            return repository
        siblings = [file.describe("rfilename", "blobId", "sha256") for file in repository.files.values()]
        return JSONResponse({"id": repository.name, "sha": repository.commit, "siblings": siblings})

    async def tree(self, request: Request) -> Response:
        repository = self._find(request)
        if isinstance(repository, Response):
            return repository
        entries = [file.describe("path", "oid", "oid") for file in repository.files.values()]
        return JSONResponse([{"type": "file", **entry} for entry in entries])

    async def resolve(self, request: Request) -> Response:
        repository = self._find(request)
        if isinstance(repository, Response):
            return repository
        file = repository.files.get(request.path_params["file"])
        if file is None:
            return _missing("EntryNotFound", "no such file")
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": repository.commit}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        return FileResponse(file.path, headers=headers, media_type="application/octet-stream")

    def _find(self, request: Request) -> Repository | Response:
        parameters = request.path_params
        repository = self._repositories.get(f"{parameters['org']}/{parameters['name']}")
        if repository is None:
            return _missing("RepoNotFound", "no such repository")
        if not repository.has(parameters.get("revision", "main")):
            return _missing("RevisionNotFound", "no such revision")
        return repository


def _missing(code: str, message: str) -> Response:
    return JSONResponse({"error": message}, 404, {"X-Error-Code": code, "X-Error-Message": message})


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a folder until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m deepseek_runtime.hub_mirror", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder that holds <org>/<name>/ folders")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args(arguments)
    repositories = scan(options.root)
    if not repositories:
        parser.error(f"{options.root} holds no <org>/<name>/ folder")
    sys.stdout.write(f"serving {', '.join(repositories)} on port {options.port}\n")
    sys.stdout.flush()
    uvicorn.run(build_mirror(repositories), host=options.host, port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
