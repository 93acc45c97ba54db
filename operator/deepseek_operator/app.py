"""kopf's part: watch, and turn every event into the key of the object it is about. Nothing is decided here.

Only `on.event` handlers are registered. They need neither a finalizer nor an annotation on the user's object, so that
it can always be deleted and always equals what its author applied.
"""

import logging
from collections.abc import Mapping
from typing import Any

import kopf

from deepseek_operator import names
from deepseek_operator.manifest import CHILDREN, DEPLOYMENT, Key, Resource
from deepseek_operator.settings import Settings
from deepseek_operator.workers import Workers

LOGGER = logging.getLogger(__name__)
WATCH_SECONDS = 600
REQUEST_SECONDS = 30
EXIT_SECONDS = 20


def key_of(metadata: Mapping[str, Any]) -> Key | None:
    """Return the object that a child belongs to, by its label; None for what is not ours."""
    owner = (metadata.get("labels") or {}).get(names.DEPLOYMENT)
    return Key(metadata["namespace"], owner) if owner else None


def registry(workers: Workers) -> kopf.OperatorRegistry:
    """Return the handlers: the object itself and every kind of its children add a key."""
    handlers = kopf.OperatorRegistry()
    kopf.on.login(registry=handlers)(login)

    async def on_object(meta: Mapping[str, Any], **_: Any) -> None:
        workers.add(Key(meta["namespace"], meta["name"]))

    async def on_child(meta: Mapping[str, Any], **_: Any) -> None:
        if (key := key_of(meta)) is not None:
            workers.add(key)

    _watch(handlers, DEPLOYMENT, on_object)
    for resource in CHILDREN:
        _watch(handlers, resource, on_child)
    return handlers


def _watch(handlers: kopf.OperatorRegistry, resource: Resource, handler: Any) -> None:
    watched = kopf.on.event(resource.group, resource.version, resource.plural, id="add-key", registry=handlers)
    watched(handler)


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Return how to reach the cluster: as the pod's service account, or as $KUBECONFIG says outside a cluster."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def operator_settings() -> kopf.OperatorSettings:
    """Return kopf's settings; each line switches off a habit that would write, list or hang."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Otherwise CRDs and namespaces are listed and watched cluster-wide.
    settings.scanning.disabled = True
    settings.watching.client_timeout = WATCH_SECONDS
    settings.watching.server_timeout = WATCH_SECONDS
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.enforce_retry_after = True
    settings.process.ultimate_exiting_timeout = EXIT_SECONDS
    for resource in CHILDREN:
        selected = (resource.group, resource.version, resource.plural)
        settings.watching.label_selectors[selected] = f"{names.MANAGED_BY}={names.MANAGER}"
    return settings


async def watch(workers: Workers, settings: Settings) -> None:
    """Watch until the process is told to stop."""
    namespaces = settings.watched_namespaces
    await kopf.operator(
        registry=registry(workers),
        settings=operator_settings(),
        clusterwide=not namespaces,
        namespaces=namespaces,
        standalone=True,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
    )
