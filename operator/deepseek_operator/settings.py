"""Settings of the operator, read once from the environment (prefix `DSV3_`) and passed on explicitly."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from deepseek_operator import __version__


class Settings(BaseSettings):
    """Everything an administrator may choose; docs/operator.md lists them."""

    model_config = SettingsConfigDict(env_prefix="DSV3_", frozen=True)

    runtime_image: Annotated[str, Field(min_length=1)] = f"ghcr.io/deepseek-v3-operator/runtime-nvidia:{__version__}"
    """Image of download Jobs and serving pods where `engine.image` is absent, for vendors nvidia and cpu."""
    runtime_image_rocm: Annotated[str, Field(min_length=1)] = f"ghcr.io/deepseek-v3-operator/runtime-rocm:{__version__}"
    """The same for vendor amd."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    cluster_domain: Annotated[str, Field(min_length=1)] = "cluster.local"
    namespaces: str = ""
    """Comma-separated namespaces to serve; empty: all of them."""
    workers: Annotated[int, Field(ge=1, le=64)] = 8
    """Objects reconciled at the same time."""
    resync_seconds: Annotated[float, Field(gt=0)] = 600.0
    """An object is looked at again after this time even if no event came."""
    health_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 8081
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def watched_namespaces(self) -> tuple[str, ...]:
        """Namespaces to serve; empty for all."""
        return tuple(name.strip() for name in self.namespaces.split(",") if name.strip())
