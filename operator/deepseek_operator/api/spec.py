"""What is wanted: the models of `spec`."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from deepseek_operator.api.schema import Model, ObjectName, Quantity, rule, rules

MAX_NODES = 64
MAX_REPLICAS = 64
MAX_REDUNDANT_EXPERTS = 256
MAX_SPECULATIVE_TOKENS = 3
IMAGE = r"^[^\s]+$"


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


class Attention(StrEnum):
    """What the ranks of a group divide among themselves: the heads of all requests, or the requests."""

    AUTO = "auto"
    TENSOR = "tensor"
    DATA = "data"


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


class ParallelismSpec(Model):
    """How the ranks of a group divide the work; routed experts are always split over all of them."""

    attention: Annotated[
        Attention,
        Field(
            description="tensor splits the heads of all requests (lowest latency), data gives each rank requests of "
            "its own (largest cache); auto takes tensor, or data where only that fits."
        ),
    ] = Attention.AUTO
    redundant_experts: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_REDUNDANT_EXPERTS,
            description="Copies of busy routed experts, placed by load; all experts together must divide over the "
            "ranks.",
        ),
    ] = 0


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
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            description="Added to the engine's container; a name that the operator also sets is overridden.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    args: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...],
        Field(max_length=64, description="Appended to the command line of deepseek_runtime.serve."),
    ] = ()


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
        dict[str, Annotated[str, Field(max_length=4096)]] | None,
        Field(max_length=32, description="Annotations of the Service, for the load balancer's controller."),
    ] = None
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
    parallelism: ParallelismSpec = ParallelismSpec()
    speculative_tokens: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SPECULATIVE_TOKENS,
            description="Tokens that the checkpoint's MTP layer drafts per step; they change the speed, never the "
            "answer. Default: 1 where there is such a layer, otherwise 0.",
        ),
    ] = None
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
