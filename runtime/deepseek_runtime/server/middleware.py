"""What wraps every route, from the outside in: log and request id, the guard against our own bugs, keys, limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from starlette.middleware import Middleware

from deepseek_runtime.server.access_log import AccessLog
from deepseek_runtime.server.auth import METRICS_PATHS, PROBE_PATHS, ApiKeys
from deepseek_runtime.server.errors import CrashGuard
from deepseek_runtime.server.limits import MIB, Bounds, Limits
from deepseek_runtime.server.metrics import Metrics
from deepseek_runtime.server.page import PATHS as PAGE_PATHS
from deepseek_runtime.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may ask what. Without a folder of keys everybody may; with one, probes and metrics have a switch each."""

    api_key_folder: Path | None = None
    protect_probes: bool = False
    protect_metrics: bool = False
    chat_page: bool = True
    bounds: Bounds = field(default_factory=Bounds)

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """As the command line has it."""
        return cls(
            api_key_folder=settings.api_key_folder,
            protect_probes=settings.protect_probes,
            protect_metrics=settings.protect_metrics,
            chat_page=settings.chat_page,
            bounds=Bounds(
                body=settings.max_body_mib * MIB,
                body_seconds=settings.body_timeout,
                requests=settings.max_requests,
                connections=settings.max_connections,
            ),
        )

    @property
    def open_paths(self) -> frozenset[str]:
        """Paths that ask for no key. A browser cannot send one before it has the page."""
        probes = frozenset() if self.protect_probes else PROBE_PATHS
        metrics = frozenset() if self.protect_metrics else METRICS_PATHS
        return probes | metrics | (PAGE_PATHS if self.chat_page else frozenset())


def middleware(policy: Policy, metrics: Metrics) -> list[Middleware]:
    """The layers, the outermost first."""
    watched = PROBE_PATHS | METRICS_PATHS
    keys = [Middleware(ApiKeys, folder=folder, exempt=policy.open_paths)] if (folder := policy.api_key_folder) else []
    return [
        Middleware(AccessLog, quiet=watched | PAGE_PATHS),
        Middleware(CrashGuard),
        *keys,
        Middleware(Limits, bounds=policy.bounds, metrics=metrics, exempt=watched),
    ]
