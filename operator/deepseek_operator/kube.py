"""The Kubernetes API as the reconciler needs it: five verbs over plain dictionaries.

`Kube` is the seam: tests put a dictionary behind it, this module the real API server. Nothing else imports the client.
Writes are server-side apply under one field manager, with exactly the fields that were rendered: whatever other
controllers and people own stays theirs.
"""

import json
import os
from collections.abc import Callable
from typing import Any, Protocol

from kubernetes.aio import client, config

from deepseek_operator.errors import ApiError, ConnectError, RejectedError
from deepseek_operator.manifest import BY_KIND, DEPLOYMENT, Key, Manifest, Resource, name_of
from deepseek_operator.names import MANAGER

REQUEST_SECONDS = 30
APPLY_TYPE = "application/apply-patch+yaml"


class Kube(Protocol):
    """What the reconciler may ask of a cluster."""

    async def get(self, resource: Resource, key: Key) -> Manifest | None:
        """Return one object, None where it does not exist."""

    async def find_all(self, resource: Resource, namespace: str, selector: str) -> list[Manifest]:
        """Return the objects of one kind that the label selector matches."""

    async def apply(self, manifest: Manifest) -> None:
        """Create or update an object by server-side apply."""

    async def apply_status(self, key: Key, status: dict[str, Any]) -> None:
        """Write the status of a DeepSeekV3Deployment, and nothing else of it."""

    async def delete(self, resource: Resource, key: Key, uid: str) -> None:
        """Delete the object with this UID and what it owns; one that is gone already is no error."""

    async def create(self, manifest: Manifest) -> None:
        """Create an object that is written once and never updated."""


class ApiServerKube:
    """The real one."""

    def __init__(self, api: client.ApiClient, count_write: Callable[[str, str], None]) -> None:
        self._api = api
        self._count_write = count_write

    async def get(self, resource: Resource, key: Key) -> Manifest | None:
        try:
            return await self._call("GET", _path(resource, *key))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def find_all(self, resource: Resource, namespace: str, selector: str) -> list[Manifest]:
        found = await self._call("GET", _path(resource, namespace), query=[("labelSelector", selector)])
        # The items of a typed list carry neither; every consumer of a manifest expects both.
        identity = {"apiVersion": resource.api_version, "kind": resource.kind}
        return [{**identity, **item} for item in found["items"]]

    async def apply(self, manifest: Manifest) -> None:
        resource = BY_KIND[manifest["kind"]]
        path = _path(resource, manifest["metadata"]["namespace"], name_of(manifest))
        await self._apply(path, manifest)
        self._count_write("apply", resource.kind)

    async def apply_status(self, key: Key, status: dict[str, Any]) -> None:
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            "metadata": {"name": key.name, "namespace": key.namespace},
            "status": status,
        }
        await self._apply(f"{_path(DEPLOYMENT, *key)}/status", body)
        self._count_write("apply", "status")

    async def delete(self, resource: Resource, key: Key, uid: str) -> None:
        # Without an explicit policy a Job leaves its pods behind, and they hold the claim.
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._call("DELETE", _path(resource, *key), body=body)
            self._count_write("delete", resource.kind)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def create(self, manifest: Manifest) -> None:
        resource = BY_KIND[manifest["kind"]]
        await self._call("POST", _path(resource, manifest["metadata"]["namespace"]), body=manifest)
        self._count_write("create", resource.kind)

    async def close(self) -> None:
        """Close the connection."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def _apply(self, path: str, body: Manifest) -> None:
        query = [("fieldManager", MANAGER), ("force", "true"), ("fieldValidation", "Strict")]
        await self._call("PATCH", path, query=query, body=body, content_type=APPLY_TYPE)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        request = await self._api.param_serialize(
            method, path, query_params=query or [], header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = await self._api.call_api(*request, _request_timeout=REQUEST_SECONDS)
        text = (await response.read()).decode()  # type: ignore[no-untyped-call]
        if response.status >= 400:
            raise _error(response.status, text)
        answer: Manifest = json.loads(text)
        return answer


async def connect(count_write: Callable[[str, str], None]) -> ApiServerKube:
    """Return a connection as the pod's service account, or as $KUBECONFIG says outside a cluster.

    Raises ConnectError where there is neither.
    """
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config()  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise ConnectError(f"No cluster to work for: {error} Run it in a pod, or set KUBECONFIG.") from error
    return ApiServerKube(client.ApiClient(), count_write)


def _path(resource: Resource, namespace: str, name: str = "") -> str:
    root = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
    path = f"{root}/namespaces/{namespace}/{resource.plural}"
    return f"{path}/{name}" if name else path


def _error(status: int, text: str) -> ApiError:
    """Return the error with the API server's own sentence, which names field and reason."""
    try:
        message = str(json.loads(text).get("message") or text)
    except (ValueError, AttributeError):
        message = text
    kind = RejectedError if status in (400, 422) else ApiError
    return kind(status, message)
