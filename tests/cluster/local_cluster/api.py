"""A few calls to the API server with the standard library alone, for the cluster's own needs."""

import base64
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Object = dict[str, Any]
# What a call raises while the server is away or in the middle of an answer.
Unavailable = (OSError, http.client.HTTPException, ValueError)


class Api:
    """Speaks for the user of one of our own kubeconfigs (JSON, token)."""

    def __init__(self, kubeconfig: Path, server: str | None = None) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = server or cluster["server"]
        self._headers = {"Authorization": f"Bearer {user['token']}"}
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        opener = urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=authority))
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), opener)

    def get(self, path: str) -> Object:
        """The object at `path`; raises urllib.error.HTTPError for what the server refuses."""
        with self._send("GET", path) as answer:
            found: Object = json.load(answer)
        return found

    def is_ok(self, path: str) -> bool:
        """Whether `path` answers with success now."""
        try:
            with self._send("GET", path, timeout=2):
                return True
        except Unavailable:
            return False

    def create(self, path: str, body: Object) -> None:
        """Create; an object that already exists is as good."""
        try:
            self._send("POST", path, body).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def patch(self, path: str, body: Object) -> None:
        """JSON merge patch."""
        self._send("PATCH", path, body, "application/merge-patch+json").close()

    def delete(self, path: str) -> None:
        self._send("DELETE", path).close()

    def changes(self, path: str) -> Iterator[None]:
        """Yield once at the start and after every change of the collection at `path`, for ever, whatever breaks."""
        while True:
            try:
                version = self.get(f"{path}?limit=1")["metadata"]["resourceVersion"]
                yield None
                with self._send(
                    "GET", f"{path}?watch=1&timeoutSeconds=240&resourceVersion={version}", timeout=300
                ) as w:
                    for _ in w:
                        yield None
            except Unavailable:
                time.sleep(0.5)

    def _send(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json", timeout: float = 10
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": kind}
        request = urllib.request.Request(self._server + path, data, headers, method=method)
        return self._opener.open(request, timeout=timeout)
