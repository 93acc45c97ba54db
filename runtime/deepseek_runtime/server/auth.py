"""API keys: every route asks for one, but for the few that probes and scrapers need. What is added later asks too."""

from __future__ import annotations

import hmac
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deepseek_runtime.server.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz", "/metrics"})


class ApiKeys:
    """Middleware that compares the bearer token with the keys in a folder, one a file, as a mounted Secret has them.

    The files are read at each request: a rotated key counts as soon as the kubelet has written it.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._known(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = ApiError(401, "give a valid API key as 'Authorization: Bearer KEY'", code="invalid_api_key")
        await error.response()(scope, receive, send)

    def _known(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode()
        matches = [hmac.compare_digest(given, known) for known in read_keys(self._folder)]
        return scheme.lower() == "bearer" and any(matches)


def read_keys(folder: Path) -> list[bytes]:
    """Every non-empty key in the folder; names that begin with a dot are the kubelet's own."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return [key for path in files if (key := path.read_bytes().strip())]
