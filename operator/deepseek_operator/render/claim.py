"""The claim for the weights: kept when its object is deleted, unless the user says otherwise."""

from typing import Any

from deepseek_operator import names
from deepseek_operator.api.v1alpha1 import AccessMode, DeletionPolicy
from deepseek_operator.manifest import CLAIM, Manifest
from deepseek_operator.plan import Plan
from deepseek_operator.render.common import header


def claim(*, plan: Plan, live: Manifest | None) -> Manifest | None:
    """Return the claim, or None where the user brings one.

    Access modes never change after creation and a size never shrinks, so what a live claim has is sent back unless the
    user wrote otherwise: a claim kept from a former object is taken as it is.
    """
    if not plan.weights.makes_claim:
        return None
    owned = plan.spec.weights.deletion_policy is DeletionPolicy.DELETE
    manifest = header(plan, CLAIM, name=plan.weights.claim, role=names.ROLE_WEIGHTS, component="weights", owned=owned)
    # A claim without owner that carries an instance label looks, to a GitOps tool tracking by it, like one to prune.
    del manifest["metadata"]["labels"][names.INSTANCE]
    storage = plan.spec.weights.storage
    spec: dict[str, Any] = {
        "accessModes": [str(mode) for mode in _access_modes(plan, live)],
        "resources": {"requests": {"storage": _size(plan, live)}},
    }
    if storage and storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    return {**manifest, "spec": spec}


def _access_modes(plan: Plan, live: Manifest | None) -> list[str]:
    if plan.weights.access_modes:
        return [str(mode) for mode in plan.weights.access_modes]
    if live is not None:
        return [str(mode) for mode in live["spec"]["accessModes"]]
    return [AccessMode.READ_WRITE_MANY if plan.shares_claim else AccessMode.READ_WRITE_ONCE]


def _size(plan: Plan, live: Manifest | None) -> str:
    storage = plan.spec.weights.storage
    if live is None or (storage and storage.size):
        return plan.weights.size
    return str(live["spec"]["resources"]["requests"]["storage"])
