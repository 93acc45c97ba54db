"""What the hub says a checkpoint is, and whether the files on disk are that.

All network traffic goes through the `huggingface_hub` client; here its many errors become one with a sentence.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

# Read by the client when it is imported. Mirrors do not speak the hub's chunk protocol; plain HTTP works everywhere.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "30")

from huggingface_hub import HfApi, errors, hf_hub_download
from huggingface_hub.hf_api import RepoSibling

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*")
"""Files that serving needs, at the top of the repository: not its code, pictures or other frameworks' weights."""

Result = TypeVar("Result")


class DownloadError(RuntimeError):
    """The checkpoint cannot be had; a sentence for people, and the file at fault if it is one."""

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub describes it. `digest` is the SHA-256 of large files, the git blob SHA-1 of the others."""

    name: str
    size: int
    digest: str
    is_lfs: bool

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has this size and hash."""
        return path.is_file() and path.stat().st_size == self.size and self._hash(path) == self.digest

    def _hash(self, path: Path) -> str:
        if self.is_lfs:
            state = hashlib.sha256()
        else:
            state = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(2**22):
                state.update(chunk)
        return state.hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a repository: the files of it that serving needs."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A model hub or a mirror of it. Network trouble is retried `retries` times, waiting twice as long each time.

    Without `endpoint` and `token`, HF_ENDPOINT and HF_TOKEN are what counts.
    """

    endpoint: str | None = None
    token: str | None = None
    retries: int = 4
    backoff: float = 1.0

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        """Resolve a revision to a commit and list its files."""
        api = HfApi(endpoint=self.endpoint, token=self.token)

        def ask() -> Snapshot:
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=30)
            files = tuple(_file(sibling) for sibling in info.siblings or [] if _wanted(sibling.rfilename))
            return Snapshot(repository, str(info.sha), files)

        snapshot = self._persist(ask, f"{repository} at revision {revision}", "")
        if not any(file.is_lfs for file in snapshot.files):
            raise DownloadError(f"{repository} at revision {revision} holds no *.safetensors files: nothing to serve")
        return snapshot

    def fetch(self, snapshot: Snapshot, file: HubFile, folder: Path) -> None:
        """Download one file into a folder, under its own name."""

        def ask() -> None:
            hf_hub_download(
                snapshot.repository,
                file.name,
                revision=snapshot.commit,
                local_dir=folder,
                endpoint=self.endpoint,
                token=self.token,
            )

        self._persist(ask, f"{file.name} of {snapshot.repository}", file.name)

    def _persist(self, ask: Callable[[], Result], what: str, file: str) -> Result:
        for attempt in range(self.retries + 1):
            try:
                return ask()
            except Exception as error:
                reason = _permanent(error)
                if reason is not None or attempt == self.retries:
                    tries = f" after {attempt + 1} tries" if attempt else ""
                    raise DownloadError(f"{what}: {reason or _first_line(error)}{tries}", file) from error
            time.sleep(self.backoff * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _permanent(error: Exception) -> str | None:
    """Why another try cannot help, or None for trouble that may pass."""
    if isinstance(error, errors.HFValidationError | DownloadError):
        return _first_line(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the volume is full"
    return next((reason for kind, reason in _PERMANENT.items() if isinstance(error, kind)), None)


_PERMANENT: dict[type[Exception], str] = {
    errors.GatedRepoError: "access must be granted on the hub first, and HF_TOKEN must belong to who has it",
    errors.RepositoryNotFoundError: "there is no such repository, or it is private and HF_TOKEN is missing or wrong",
    errors.RevisionNotFoundError: "there is no such revision",
    errors.RemoteEntryNotFoundError: "the hub lists the file but does not have it",
}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _wanted(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WANTED) and "/" not in name and not name.startswith(".")


def _file(sibling: RepoSibling) -> HubFile:
    size, digest = sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if size is None or digest is None:
        raise DownloadError(f"the hub tells no size or hash of {sibling.rfilename}", sibling.rfilename)
    return HubFile(sibling.rfilename, size, digest, sibling.lfs is not None)
