"""What the routes share: the model's names and limits, its text side, the engine's door."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepseek_runtime.engine.engine import Engine
from deepseek_runtime.health import Health, Phase
from deepseek_runtime.server.courier import Courier
from deepseek_runtime.server.errors import ApiError, unavailable
from deepseek_runtime.server.metrics import Metrics
from deepseek_runtime.text.grammar import Grammars
from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepseek_runtime.server.generation import Generation

logger = logging.getLogger(__name__)

NOTED_FIELDS = 100
"""Names of unknown fields that are remembered at most: they are the clients' to choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model that is loaded and ready to answer.

    `max_model_len` bounds prompt and answer together, in tokens; `places` the sequences that run or wait together.
    """

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    grammars: Grammars
    max_model_len: int
    places: int


def model_details(service: Service) -> dict[str, Any]:
    """What a client may want to know of the model before it asks."""
    dialect = service.template.dialect
    return {
        "max_model_len": service.max_model_len,
        "capabilities": {
            "reasoning": dialect.thinking,
            "reasoning_variable": dialect.variable,
            "tools": dialect.tools is not None,
            "response_formats": ["text", "json_object", "json_schema"],
            "inputs": ["text"],
        },
    }


@dataclass(slots=True, kw_only=True)
class ServerState:
    """The server from its first second on; the service comes later, when weights are loaded.

    Times are in seconds. A client that does not read is given up when more than `unread_limit` tokens of a choice wait
    for it, or when it takes nothing for `send_timeout`. `generations` are those that are not closed yet.
    """

    names: Sequence[str]
    health: Health
    metrics: Metrics
    request_timeout: float = 600.0
    keep_alive: float = 10.0
    unread_limit: int = 4096
    send_timeout: float = 30.0
    courier: Courier = field(default_factory=Courier)
    generations: set[Generation] = field(default_factory=set)
    created: int = field(default_factory=lambda: int(time.time()))
    service: Service | None = None
    _noted: set[str] = field(default_factory=set)

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

    def note_unknown(self, fields: set[str]) -> None:
        """Tell the log, once, of fields that have no effect."""
        for name in sorted(fields - self._noted)[: NOTED_FIELDS - len(self._noted)]:
            self._noted.add(name)
            logger.warning("requests have the field %.60r, which is not known here and ignored", name)
