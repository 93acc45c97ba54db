"""Plain Kubernetes objects: the type, the kinds that the operator handles, identity hashes, and "is this already so?".

Objects are dictionaries from the first line to the wire, so that server-side apply sends exactly what a render function
wrote, and tests check exactly that against the published schemas.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from deepseek_operator.api import v1alpha1 as api
from deepseek_operator.quantity import same_quantity

Manifest = dict[str, Any]
APPLIED_ANNOTATION = f"{api.GROUP}/applied"


class Key(NamedTuple):
    """Name of one DeepSeekV3Deployment; a tuple with names, so that the two parts are never swapped unseen."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind, as the API server's URLs name it."""

    api_version: str
    kind: str
    plural: str

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """Version inside the group."""
        return self.api_version.rpartition("/")[2]


DEPLOYMENT = Resource(api.API_VERSION, api.KIND, api.PLURAL)
POD = Resource("v1", "Pod", "pods")
SERVICE = Resource("v1", "Service", "services")
CLAIM = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SERVICE_ACCOUNT = Resource("v1", "ServiceAccount", "serviceaccounts")
STATEFUL_SET = Resource("apps/v1", "StatefulSet", "statefulsets")
JOB = Resource("batch/v1", "Job", "jobs")
EVENT = Resource("v1", "Event", "events")

CHILDREN = (SERVICE_ACCOUNT, CLAIM, JOB, SERVICE, STATEFUL_SET, POD)
BY_KIND = {resource.kind: resource for resource in (DEPLOYMENT, EVENT, *CHILDREN)}


def name_of(manifest: Manifest) -> str:
    """Return `metadata.name`."""
    return str(manifest["metadata"]["name"])


def uid_of(manifest: Manifest) -> str:
    """Return `metadata.uid`, empty for an object that was never stored."""
    return str(manifest["metadata"].get("uid", ""))


def labels_of(manifest: Manifest) -> Mapping[str, str]:
    """Return the labels, empty where there are none."""
    return manifest["metadata"].get("labels") or {}


def controller_of(manifest: Manifest) -> str | None:
    """Return the UID of the controlling owner, None where there is none."""
    owners = manifest["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def is_going(manifest: Manifest) -> bool:
    """Tell whether the object is being deleted."""
    return "deletionTimestamp" in manifest["metadata"]


def digest(value: Any, length: int = 10) -> str:
    """Return the first hex digits of the SHA-256 of the canonical JSON: key order and spacing do not matter."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def stamped(manifest: Manifest) -> Manifest:
    """Return a copy that carries the hash of its own content, to be compared with at the next pass."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), APPLIED_ANNOTATION: digest(manifest, 16)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def applied_hash(manifest: Manifest) -> str:
    """Return the hash that `stamped` wrote, empty where it is missing."""
    annotations = manifest["metadata"].get("annotations") or {}
    return str(annotations.get(APPLIED_ANNOTATION, ""))


def is_applied(desired: Manifest, live: Manifest) -> bool:
    """Tell whether the live object is what `desired`, already stamped, asks for.

    The hash finds what is no longer wanted, which a comparison of wanted fields cannot see; the comparison finds what
    somebody else has changed since, which the hash cannot see.
    """
    return applied_hash(desired) == applied_hash(live) and covers(live, desired)


def covers(live: Any, desired: Any) -> bool:
    """Tell whether `live` holds every field of `desired`, whatever defaults the API server has added around them."""
    if isinstance(desired, dict):
        held = live if isinstance(live, dict) else {}
        return all(covers(held.get(key), value) for key, value in desired.items())
    if isinstance(desired, list):
        held_items = live if isinstance(live, list) else []
        return len(held_items) == len(desired) and all(map(covers, held_items, desired))
    return bool(live == desired) or same_quantity(live, desired)
