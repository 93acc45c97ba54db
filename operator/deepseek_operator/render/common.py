"""What several kinds share: metadata with owner and labels, and the security of every pod."""

from typing import Any

from deepseek_operator import names
from deepseek_operator.api import v1alpha1 as api
from deepseek_operator.manifest import Manifest, Resource
from deepseek_operator.plan import Plan

USER = 65532
"""Numeric, so that the kubelet can prove `runAsNonRoot`; the images are built with the same one."""

CACHE = "/cache"
WEIGHTS = "/weights"
# Everything that writes beside the weights writes here: a random or fixed user owns no home, and the root is read-only.
CACHE_ENV = {
    "HOME": CACHE,
    "HF_HOME": f"{CACHE}/huggingface",
    "XDG_CACHE_HOME": f"{CACHE}/xdg",
    "TRITON_CACHE_DIR": f"{CACHE}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
}


def header(plan: Plan, resource: Resource, *, name: str, role: str, component: str, owned: bool = True) -> Manifest:
    """Return an object with identity, labels and, unless it must outlive its object, the owner."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": plan.key.namespace,
        "labels": names.labels(plan.key.name, role, component),
    }
    if owned:
        metadata["ownerReferences"] = [owner(plan)]
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}


def owner(plan: Plan) -> Manifest:
    """Return the reference by which the garbage collector removes a child, with or without the operator."""
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "name": plan.key.name,
        "uid": plan.uid,
        "controller": True,
    }


def environment(values: dict[str, str]) -> list[dict[str, str]]:
    """Return variables in the form of a container's `env`."""
    return [{"name": name, "value": value} for name, value in values.items()]


def pod_security() -> dict[str, Any]:
    """Return the pod's security context, as the *restricted* standard asks."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        # Without this the kubelet changes the group of 700 GB of files at every start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Return a container's security context, as the *restricted* standard asks, with a read-only root as well."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def scratch_volumes() -> list[Manifest]:
    """Return the writable places of a pod whose root is read-only."""
    return [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]


def scratch_mounts() -> list[Manifest]:
    """Return where the writable places appear."""
    return [{"name": "cache", "mountPath": CACHE}, {"name": "tmp", "mountPath": "/tmp"}]


def weights_volume(plan: Plan) -> Manifest:
    """Return the volume that holds the weights."""
    return {"name": "weights", "persistentVolumeClaim": {"claimName": plan.weights.claim}}
