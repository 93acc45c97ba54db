"""API keys: every route asks for one, but for the few that probes and scrapers need. What is added later asks too."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterator
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from deepseek_runtime.server.errors import ApiError

logger = logging.getLogger(__name__)

PROBE_PATHS = frozenset({"/health", "/livez", "/readyz", "/startupz"})
METRICS_PATHS = frozenset({"/metrics"})


class ApiKeys:
    """Middleware that compares a request's key with those in a folder, one a file, as a mounted Secret has them.

    The files are read at each request: a rotated key counts as soon as the kubelet has written it. `exempt` paths, to
    the letter, are open.
    """

    def __init__(self, app: ASGIApp, folder: Path, exempt: frozenset[str]) -> None:
        self._app = app
        self._folder = folder
        self._exempt = exempt
        self._problem = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"] in self._exempt or self._knows(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            message = "give a valid API key as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'"
            error = ApiError(401, message, code="invalid_api_key")
            await error.response()(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        """Whether one of the keys given is right. Each is compared with every known one, however early it is found."""
        known = self._read()
        matches = [hmac.compare_digest(given, key) for given in given_keys(scope) for key in known]
        return any(matches)

    def _read(self) -> list[bytes]:
        keys, problem = read_keys(self._folder)
        if problem != self._problem:
            self._problem = problem
            logger.warning("API keys: %s", problem or "all files can be read again")
        return keys


def given_keys(scope: Scope) -> Iterator[bytes]:
    """The keys of a request: as a bearer token, or as clients of Anthropic's API send it."""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()


def read_keys(folder: Path) -> tuple[list[bytes], str]:
    """Every key in the folder, and what is wrong with it or ""; names that begin with a dot are the kubelet's own.

    A file that cannot be read holds no key, but does not invalidate the others.
    """
    keys, problems = [], []
    try:
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_file()]
    except OSError as error:
        return [], f"{folder} cannot be read, nobody is let in: {error.strerror}"
    for path in files:
        try:
            keys.append(path.read_bytes().strip())
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}")
    found = [key for key in keys if key]
    if not found:
        problems.append(f"{folder} holds no key, nobody is let in")
    return found, "; ".join(problems)
