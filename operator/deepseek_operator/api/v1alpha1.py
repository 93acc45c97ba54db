"""DeepSeekV3Deployment, version v1alpha1: the single source of the custom resource definition.

`crd.py` turns these models into the schema that the API server enforces, so a field, its bounds, its default and its
sentence are written once, here. A rule over several fields is CEL, kept beside the fields it speaks about.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "serving.dsv3.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "DeepSeekV3Deployment"
PLURAL = "deepseekv3deployments"

MAX_NAME = 40
MAX_NODES = 64
MAX_REPLICAS = 64

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
IMAGE = r"^[^\s]+$"

Quantity = Annotated[str, Field(pattern=QUANTITY, max_length=32)]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN, min_length=1, max_length=253)]


def rule(expression: str, message: str, field_path: str | None = None) -> dict[str, str]:
    """Return one CEL validation: an expression over `self` and the sentence a user reads when it is false."""
    validation = {"rule": expression, "message": message, "reason": "FieldValueInvalid"}
    return validation | ({"fieldPath": field_path} if field_path else {})


def rules(*validations: dict[str, str]) -> dict[str, Any]:
    """Return the schema extension that carries CEL validations."""
    return {"x-kubernetes-validations": list(validations)}


class Model(BaseModel):
    """Base of every model: camelCase on the wire, unknown fields refused, values never changed after parsing."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Vendor(StrEnum):
    """Maker of the accelerator; `cpu` runs one process per `perNode` without any device."""

    NVIDIA = "nvidia"
    AMD = "amd"
    CPU = "cpu"


class DeletionPolicy(StrEnum):
    """What becomes of the weights claim when the object is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class AccessMode(StrEnum):
    """How many nodes may mount a claim, in Kubernetes' own words."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_MANY = "ReadWriteMany"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"


class ServiceType(StrEnum):
    """How clients reach the endpoint."""

    LOAD_BALANCER = "LoadBalancer"
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"


class ModelSpec(Model):
    """Which checkpoint to serve and where it comes from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!self.source.startsWith('pvc://') || !(has(self.endpoint) || has(self.secretName))",
                "endpoint and secretName are for hf:// sources; a pvc:// source is read in place",
            )
        )
    )

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=512,
            description="Where the checkpoint is: hf://organisation/name on a hub, or pvc://claim/path in a claim of "
            "this namespace. Immutable: another model is another object.",
            json_schema_extra=rules(
                rule(
                    "self.matches('^(hf|pvc)://')",
                    "source must start with a supported scheme: hf://organisation/name or pvc://claim/path",
                ),
                rule(
                    "!self.startsWith('hf://') || "
                    "self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$')",
                    "an hf:// source is hf://organisation/name, for example hf://deepseek-ai/DeepSeek-V3-0324",
                ),
                rule(
                    "!self.startsWith('pvc://') || "
                    "self.matches('^pvc://[a-z0-9]([-.a-z0-9]*[a-z0-9])?(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$')",
                    "a pvc:// source is pvc://claim or pvc://claim/path, without '..' and without a trailing slash",
                ),
                rule("self == oldSelf", "source is immutable; make another object for another model"),
            ),
        ),
    ]
    revision: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
            description="Branch, tag or commit of an hf:// source. The commit it stood for is shown in status.model.",
        ),
    ] = "main"
    endpoint: Annotated[
        str | None,
        Field(
            max_length=512,
            pattern=r"^https?://[^\s]+$",
            description="Base URL of a mirror that speaks the hub's API. Default: the public hub.",
        ),
    ] = None
    secret_name: Annotated[
        ObjectName | None, Field(description="Secret of this namespace whose key HF_TOKEN opens a gated repository.")
    ] = None
    served_names: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")]] | None,
        Field(min_length=1, max_length=8, description="Model names that clients may ask for. Default: the object's."),
    ] = None
    max_model_len: Annotated[
        int | None,
        Field(ge=16, le=1_048_576, description="Longest context in tokens. Default: what the checkpoint declares."),
    ] = None


class AcceleratorSpec(Model):
    """What the processes of a group compute on."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.vendor != 'cpu' || !has(self.resourceName)",
                "vendor cpu uses no device; remove resourceName or choose vendor nvidia or amd",
            )
        )
    )

    vendor: Annotated[Vendor, Field(description="nvidia, amd or cpu.")] = Vendor.NVIDIA
    product: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            description="Catalogue name (H100, H200, MI300X …); gives the memory that the fit is computed with.",
        ),
    ] = None
    memory: Annotated[
        Quantity | None,
        Field(description="Memory of one device (vendor cpu: of one process), where the catalogue is wrong or silent."),
    ] = None
    resource_name: Annotated[
        str | None,
        Field(
            max_length=128,
            pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$",
            description="Device resource that a pod asks for. Default: nvidia.com/gpu or amd.com/gpu.",
        ),
    ] = None
    per_node: Annotated[
        int | None,
        Field(ge=1, le=16, description="Devices, hence processes, per pod. Default: 8; for vendor cpu, 1."),
    ] = None


class EnvVar(Model):
    """One environment variable of the engine's container."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: Annotated[str, Field(max_length=4096)] = ""


class EngineSpec(Model):
    """The program that serves; today always the project's own runtime."""

    image: Annotated[
        str | None,
        Field(min_length=1, max_length=512, pattern=IMAGE, description="Default: the operator's DSV3_RUNTIME_IMAGE."),
    ] = None
    env: Annotated[
        list[EnvVar],
        Field(
            max_length=64,
            description="Added to the engine's container; a name that the operator also sets is overridden.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
    args: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024)]],
        Field(max_length=64, description="Appended to the command line of deepseek_runtime.serve."),
    ] = []


class StorageSpec(Model):
    """The claim that the operator makes for the weights."""

    size: Annotated[
        Quantity | None,
        Field(description="Default: a known checkpoint's bytes and 10 %; 10Gi for any other. It may grow, not shrink."),
    ] = None
    storage_class_name: Annotated[
        ObjectName | None,
        Field(
            description="Default: the cluster's default class.",
            json_schema_extra=rules(rule("self == oldSelf", "storageClassName of an existing claim cannot change")),
        ),
    ] = None
    access_modes: Annotated[
        list[AccessMode] | None,
        Field(
            min_length=1,
            max_length=3,
            description="Default: ReadWriteMany where several pods share the claim, otherwise ReadWriteOnce.",
        ),
    ] = None


class WeightsSpec(Model):
    """Where the verified weights live."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.claimName) && has(self.storage))",
                "claimName names a claim that exists, storage describes one to make: give one of them",
            ),
            rule(
                "!has(self.claimName) || self.deletionPolicy == 'Retain'",
                "deletionPolicy Delete is for claims that the operator makes; a claim given by claimName is kept",
            ),
        )
    )

    claim_name: Annotated[ObjectName | None, Field(description="An existing claim to download into.")] = None
    storage: StorageSpec | None = None
    deletion_policy: Annotated[
        DeletionPolicy, Field(description="Retain keeps the claim when the object is deleted; Delete removes it.")
    ] = DeletionPolicy.RETAIN


class ServiceSpec(Model):
    """The Service that clients talk to."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.type == 'LoadBalancer' || !(has(self.loadBalancerClass) || has(self.loadBalancerSourceRanges))",
                "loadBalancerClass and loadBalancerSourceRanges need type LoadBalancer",
            )
        )
    )

    type: ServiceType = ServiceType.LOAD_BALANCER
    port: Annotated[int, Field(ge=1, le=65535, description="Port that clients use; it leads to 8000 of rank 0.")] = 80
    annotations: Annotated[
        dict[str, Annotated[str, Field(max_length=4096)]],
        Field(max_length=32, description="Annotations of the Service, for the load balancer's controller."),
    ] = {}
    load_balancer_class: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    load_balancer_source_ranges: Annotated[
        list[Annotated[str, Field(max_length=64, pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")]] | None,
        Field(min_length=1, max_length=64, description="CIDR ranges that may reach the endpoint."),
    ] = None


class StartupSpec(Model):
    """How long a pod may take to load weights and join its group."""

    timeout_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=86_400,
            description="Default: twice the time to read the checkpoint at 100 MB/s, and at least 1800.",
        ),
    ] = None


class NetworkSpec(Model):
    """The network between the pods of a group; what is absent is left to the libraries."""

    interface: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=64,
            pattern=r"^[=^]?[A-Za-z0-9][A-Za-z0-9._,-]*$",
            description="Interface for collectives (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME).",
        ),
    ] = None


SHARED_CLAIM_RULE = rule(
    "!has(self.weights) || !has(self.weights.storage) || !has(self.weights.storage.accessModes) || "
    "self.weights.storage.accessModes.exists(m, m == 'ReadWriteMany') || "
    "(has(self.nodes) ? self.nodes : 1) * self.replicas <= 1",
    "several pods (nodes × replicas > 1) share the weights: accessModes must contain ReadWriteMany",
    ".weights.storage.accessModes",
)


class Spec(Model):
    """What is wanted: one checkpoint, served by `replicas` groups of `nodes` pods."""

    model_config = ConfigDict(json_schema_extra=rules(SHARED_CLAIM_RULE))

    model: ModelSpec
    accelerator: AcceleratorSpec = AcceleratorSpec()
    nodes: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_NODES,
            description="Pods per group. Default: the fewest that hold a known checkpoint, otherwise 1.",
        ),
    ] = None
    replicas: Annotated[
        int, Field(ge=0, le=MAX_REPLICAS, description="Groups, each a complete copy of the model. 0 stops serving.")
    ] = 1
    engine: EngineSpec = EngineSpec()
    weights: WeightsSpec = WeightsSpec()
    service: ServiceSpec = ServiceSpec()
    startup: StartupSpec = StartupSpec()
    network: NetworkSpec = NetworkSpec()
    pod_template: Annotated[
        dict[str, Any] | None,
        Field(
            description="Merged last over the serving pods' template (strategic merge): tolerations, nodeSelector, "
            "volumes, resources, securityContext. The engine's container is named `engine`; `$patch: delete` removes "
            "what it stands in, `$patch: replace` puts it in place of ours.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None
    suspend: Annotated[bool, Field(description="Stop all pods; keep the weights and the address.")] = False


class Condition(Model):
    """One statement about the object, in the form that kubectl wait and kstatus read."""

    type: Annotated[str, Field(max_length=64)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(min_length=1, max_length=128)]
    message: Annotated[str, Field(max_length=8192)]
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    observed_generation: int


class ModelStatus(Model):
    """The checkpoint that is served."""

    name: str
    revision: Annotated[str | None, Field(description="Commit that was downloaded and verified.")] = None
    bytes: Annotated[int | None, Field(description="Size of the verified files.")] = None


class WeightsPhase(StrEnum):
    """Where the weights are on their way to the claim."""

    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    FAILING = "Failing"
    READY = "Ready"


class WeightsStatus(Model):
    """The claim and what is in it."""

    phase: WeightsPhase
    claim_name: str
    content: Annotated[
        str | None, Field(description="Folder of the claim: a hash of source, endpoint and revision.")
    ] = None


class PlanStatus(Model):
    """The numbers that the operator chose."""

    nodes: int
    accelerators: Annotated[int, Field(description="Processes of one group, one per device.")]
    weight_bytes_per_accelerator: Annotated[int | None, Field(description="Largest share of weights, if known.")] = None


class GroupPhase(StrEnum):
    """One word for the state of a group."""

    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    FAILING = "Failing"
    UPDATING = "Updating"


class PodStatus(Model):
    """One pod of a group."""

    name: str
    uid: str
    node: str | None = None
    ready: bool


class GroupStatus(Model):
    """One group: the pods that together hold one copy of the model."""

    index: int
    phase: GroupPhase
    ready: bool
    revision: str | None = None
    restarts: Annotated[int, Field(description="Container restarts of the pods that exist now.")] = 0
    reason: str | None = None
    message: str | None = None
    pods: list[PodStatus] = []


class Status(Model):
    """What is: computed from the cluster at every pass, written only when it differs."""

    observed_generation: int | None = None
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    groups_summary: Annotated[str | None, Field(description="Ready and wanted groups, for kubectl's table.")] = None
    selector: Annotated[str | None, Field(description="Selects rank 0 of every group, for autoscalers.")] = None
    revision: Annotated[str | None, Field(description="Hash of the fields that shape the pods.")] = None
    endpoint: Annotated[str | None, Field(description="Base URL for OpenAI clients is this and /v1.")] = None
    model: ModelStatus | None = None
    weights: WeightsStatus | None = None
    plan: PlanStatus | None = None
    groups: Annotated[
        list[GroupStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]}),
    ] = []


ROOT_RULES = rules(
    rule(
        f"size(self.metadata.name) <= {MAX_NAME}",
        f"metadata.name must be at most {MAX_NAME} characters, because the names of pods and Services derive from it",
    ),
    rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must start with a letter and hold only a-z, 0-9 and '-', because a Service takes its name",
    ),
)

PRINTER_COLUMNS: list[dict[str, Any]] = [
    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason", "priority": 1},
    {"name": "Groups", "type": "string", "jsonPath": ".status.groupsSummary"},
    {"name": "Model", "type": "string", "jsonPath": ".status.model.name"},
    {"name": "Accelerator", "type": "string", "jsonPath": ".spec.accelerator.vendor"},
    {"name": "Endpoint", "type": "string", "jsonPath": ".status.endpoint", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
