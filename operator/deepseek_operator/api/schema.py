"""What the models are written with: the base class, bounds that several fields share, and CEL rules as data."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"

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
