"""From what the user wrote to every number and name that the objects are made of.

A Plan holds no live state and no time: the same object under the same settings gives the same Plan, so a restart of the
operator computes nothing new.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from deepseek_operator import fit, names, quantity
from deepseek_operator.api.v1alpha1 import AccessMode, Spec, Vendor
from deepseek_operator.errors import SpecError
from deepseek_operator.manifest import Key, Manifest, digest, uid_of
from deepseek_operator.settings import Settings

# Part of every hash below. Raise it only with a change that must replace running pods.
HASH_SCHEMA = 1

DEFAULT_DEVICES = 8
DEFAULT_CLAIM_SIZE = "10Gi"
RESOURCE_NAMES = {Vendor.NVIDIA: "nvidia.com/gpu", Vendor.AMD: "amd.com/gpu"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights come from and where they lie."""

    claim: str
    makes_claim: bool
    size: str
    access_modes: tuple[AccessMode, ...] | None
    downloads: bool
    hash: str
    path: str
    """Folder inside the claim, relative to its root; empty for the root itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that rendering needs to know."""

    key: Key
    uid: str
    spec: Spec
    settings: Settings
    nodes: int
    per_node: int
    groups: int
    weights: Weights
    fit: fit.Fit
    revision: str

    @property
    def ranks(self) -> int:
        """Processes of one group."""
        return self.nodes * self.per_node

    @property
    def shares_claim(self) -> bool:
        """Tell whether several pods mount the weights at the same time."""
        return self.nodes * self.spec.replicas > 1

    @property
    def image(self) -> str:
        """Image of serving pods and of the download Job."""
        if self.spec.engine.image:
            return self.spec.engine.image
        amd = self.spec.accelerator.vendor is Vendor.AMD
        return self.settings.runtime_image_rocm if amd else self.settings.runtime_image

    @property
    def served_names(self) -> list[str]:
        """Model names that clients may ask for."""
        return self.spec.model.served_names or [self.key.name]

    @property
    def device_resource(self) -> str | None:
        """Extended resource that a pod asks for, None where there is no device."""
        accelerator = self.spec.accelerator
        return accelerator.resource_name or RESOURCE_NAMES.get(accelerator.vendor)


def make(manifest: Manifest, settings: Settings) -> Plan:
    """Return the plan of one object; raise SpecError where no plan is possible."""
    spec = parse(manifest)
    _check_drafts(spec)
    metadata = manifest["metadata"]
    per_node = spec.accelerator.per_node or (1 if spec.accelerator.vendor is Vendor.CPU else DEFAULT_DEVICES)
    fitted = fit.judge(spec, per_node)
    plan = Plan(
        key=Key(metadata["namespace"], metadata["name"]),
        uid=uid_of(manifest),
        spec=spec,
        settings=settings,
        nodes=fitted.nodes,
        per_node=per_node,
        groups=0 if spec.suspend else spec.replicas,
        weights=_weights(metadata["name"], spec, fitted),
        fit=fitted,
        revision=revision(spec),
    )
    _check_access_modes(plan)
    return plan


def parse(manifest: Manifest) -> Spec:
    """Return the typed spec; the API server has enforced the same schema, unless the CRD is from another version."""
    try:
        return Spec.model_validate(manifest.get("spec"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("spec", *first["loc"]))
        raise SpecError("InvalidSpec", f"{field}: {first['msg']}; is the CRD of this operator's version?") from error


def revision(spec: Spec) -> str:
    """Return the hash of the fields that shape the pods, and of nothing else.

    Only what differs from a default counts: a field that a later version adds does not change the hash, nor do the
    operator's settings, nor scaling.
    """
    shaping = {"model", "accelerator", "nodes", "engine", "network", "startup", "pod_template"}
    shaping |= {"parallelism", "speculative_tokens"}
    chosen = _chosen(spec, shaping)
    return digest([HASH_SCHEMA, chosen, spec.weights.claim_name])


def _chosen(spec: Spec, fields: set[str]) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, include=fields, exclude_defaults=True, exclude_none=True)


def _weights(name: str, spec: Spec, fitted: fit.Fit) -> Weights:
    source = spec.model.source
    if source.startswith("pvc://"):
        claim, _, path = source.removeprefix("pvc://").partition("/")
        return Weights(claim, False, "", None, downloads=False, hash="", path=path)
    content = digest([HASH_SCHEMA, source, spec.model.endpoint, spec.model.revision])
    storage = spec.weights.storage
    return Weights(
        claim=spec.weights.claim_name or names.claim(name),
        makes_claim=spec.weights.claim_name is None,
        size=(storage and storage.size) or _default_size(fitted),
        access_modes=tuple(storage.access_modes) if storage and storage.access_modes else None,
        downloads=True,
        hash=content,
        path=content,
    )


def _default_size(fitted: fit.Fit) -> str:
    """Return a known checkpoint's size and a tenth, or a size that suits small models."""
    if fitted.checkpoint_bytes is None:
        return DEFAULT_CLAIM_SIZE
    return quantity.gibibytes(fitted.checkpoint_bytes * 11 // 10)


def _check_drafts(spec: Spec) -> None:
    """Refuse before the download what the runtime would refuse after it."""
    shape = fit.known_shape(spec)
    if spec.speculative_tokens and shape is not None and shape.mtp_layers == 0:
        raise SpecError(
            "NoDraftLayer",
            f"spec.speculativeTokens is {spec.speculative_tokens}, but {spec.model.source} has no MTP layer to draft "
            "with: set it to 0 or leave it out",
        )


def _check_access_modes(plan: Plan) -> None:
    """Refuse what admission could not see, because the number of nodes was the planner's."""
    modes = plan.weights.access_modes
    if modes and plan.shares_claim and AccessMode.READ_WRITE_MANY not in modes:
        raise SpecError(
            "ClaimNotShareable",
            f"spec.weights.storage.accessModes is {', '.join(modes)}, but {plan.nodes} nodes × {plan.spec.replicas} "
            "replicas mount the weights: add ReadWriteMany, or lower nodes and replicas to one pod",
        )
