"""What the routes share: the model's names and limits, its text side, the engine's door."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from deepseek_runtime.engine.engine import Engine
from deepseek_runtime.health import Health, Phase
from deepseek_runtime.server.errors import ApiError, unavailable
from deepseek_runtime.server.metrics import Metrics
from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model that is loaded and ready to answer. `max_model_len` bounds prompt and answer together, in tokens."""

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    max_model_len: int


@dataclass(slots=True, kw_only=True)
class ServerState:
    """The server from its first second on; the service comes later, when weights are loaded."""

    names: Sequence[str]
    health: Health
    metrics: Metrics
    request_timeout: float = 600.0
    keep_alive: float = 10.0
    created: int = field(default_factory=lambda: int(time.time()))
    service: Service | None = None

    def __post_init__(self) -> None:
        self.metrics.watch(lambda: self.service.engine.stats() if self.service else None, self.health)

    def open(self) -> Service:
        """The service, if requests are welcome now; ApiError 503 otherwise."""
        phase = self.health.phase
        if phase is Phase.DRAINING:
            raise unavailable("draining", "this server is shutting down, try again: another one may answer")
        if phase is Phase.BROKEN:
            raise unavailable("group_broken", f"this server restarts, try again later: {self.health.message}")
        if self.service is None or phase is not Phase.READY:
            done = f"{self.health.progress:.0%} of the weights are read"
            raise unavailable("loading", f"the model is not ready yet ({phase}, {done}), try again later")
        if self.health.stalled:
            raise unavailable("stalled", "the group makes no progress, try again later")
        return self.service

    def check_model(self, name: str) -> None:
        """ApiError 404 for a model that is not served here."""
        if name not in self.names:
            known = ", ".join(self.names)
            raise ApiError(
                404, f"model {name!r} is not served here, only {known}", code="model_not_found", param="model"
            )
