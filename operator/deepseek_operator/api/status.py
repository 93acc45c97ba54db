"""What is: the models of `status`."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from deepseek_operator.api.schema import Model


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
    attention: Annotated[
        Literal["tensor", "data"] | None,
        Field(description="What the ranks divide: heads, or requests; absent where the runtime chooses."),
    ] = None
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
    pods: tuple[PodStatus, ...] = ()


class Status(Model):
    """What is: computed from the cluster at every pass, written only when it differs."""

    observed_generation: int | None = None
    conditions: Annotated[
        tuple[Condition, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
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
        tuple[GroupStatus, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]}),
    ] = ()
