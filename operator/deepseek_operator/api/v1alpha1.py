"""DeepSeekV3Deployment, version v1alpha1: the single source of the custom resource definition.

`crd.py` turns these models into the schema that the API server enforces, so a field, its bounds, its default and its
sentence are written once, in `spec.py` and `status.py`. A rule over several fields is CEL, kept beside the fields it
speaks about. Here is what belongs to the version as a whole; everything else imports the version's names from here.
"""

from typing import Any

from deepseek_operator.api.schema import rule, rules
from deepseek_operator.api.spec import (
    MAX_REPLICAS,
    AcceleratorSpec,
    AccessMode,
    Attention,
    DeletionPolicy,
    ServiceType,
    Spec,
    Vendor,
)
from deepseek_operator.api.status import (
    Condition,
    GroupPhase,
    GroupStatus,
    ModelStatus,
    PlanStatus,
    PodStatus,
    Status,
    WeightsPhase,
    WeightsStatus,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "MAX_NAME",
    "MAX_REPLICAS",
    "PLURAL",
    "PRINTER_COLUMNS",
    "ROOT_RULES",
    "VERSION",
    "AcceleratorSpec",
    "AccessMode",
    "Attention",
    "Condition",
    "DeletionPolicy",
    "GroupPhase",
    "GroupStatus",
    "ModelStatus",
    "PlanStatus",
    "PodStatus",
    "ServiceType",
    "Spec",
    "Status",
    "Vendor",
    "WeightsPhase",
    "WeightsStatus",
]

GROUP = "serving.dsv3.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "DeepSeekV3Deployment"
PLURAL = "deepseekv3deployments"

MAX_NAME = 40

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
