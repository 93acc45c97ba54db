"""Why a pod is not ready, in one CamelCase word and one sentence that names the pod.

Users look at the custom resource first; what the kubelet or the scheduler has already said must be there.
"""

from dataclasses import dataclass
from typing import Any

from deepseek_operator.manifest import Manifest, is_going, name_of

MAX_DETAIL = 400
# Reasons that come before every other: nothing gets better by waiting.
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why pods are not ready; the highest `severity` is told first."""

    severity: int
    reason: str
    message: str

    @property
    def is_failure(self) -> bool:
        """Tell a pod that fails from one that is on its way."""
        return self.severity >= 2


def conditions_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return the conditions of any object by type."""
    return {entry["type"]: entry for entry in manifest.get("status", {}).get("conditions") or []}


def is_ready(pod: Manifest) -> bool:
    """Tell whether a pod serves: ready, and not on its way out."""
    return not is_going(pod) and conditions_of(pod).get("Ready", {}).get("status") == "True"


def containers(pod: Manifest) -> list[dict[str, Any]]:
    """Return the states of all containers, init containers first, as they run."""
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def restarts(pod: Manifest) -> int:
    """Return how often containers of the pod were restarted."""
    return sum(container.get("restartCount", 0) for container in containers(pod))


def last_end(container: dict[str, Any]) -> dict[str, Any] | None:
    """Return how the container ended last, be it now or before its restart."""
    return (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")


def cause_of(pod: Manifest) -> Cause | None:
    """Return why a pod is not ready, or None if it is."""
    if is_ready(pod):
        return None
    name = name_of(pod)
    if is_going(pod):
        return Cause(1, "Terminating", f"pod {name} is being deleted")
    if (scheduled := conditions_of(pod).get("PodScheduled", {})).get("status") == "False":
        return Cause(3, scheduled.get("reason", "Unschedulable"), f"pod {name}: {_brief(scheduled.get('message'))}")
    found = [cause for container in containers(pod) if (cause := _container_cause(name, container))]
    waiting = Cause(0, "Starting", f"pod {name} is starting")
    return max([*found, waiting], key=lambda cause: cause.severity)


def worst(causes: list[Cause]) -> Cause | None:
    """Return the cause to tell first: the most severe, and among equals the first pod's."""
    return max(causes, key=lambda cause: cause.severity, default=None)


def _container_cause(pod: str, container: dict[str, Any]) -> Cause | None:
    state = container.get("state") or {}
    if waiting := state.get("waiting"):
        reason = waiting.get("reason") or "Waiting"
        if reason in _STARTING:
            return Cause(0, reason, f"pod {pod} is starting")
        return Cause(4, reason, f"pod {pod}: {_brief(_end_sentence(container) or waiting.get('message'))}")
    if state.get("terminated"):
        return Cause(2, state["terminated"].get("reason") or "Terminated", f"pod {pod}: {_end_sentence(container)}")
    if not container.get("ready") and container.get("restartCount", 0) > 0 and not container.get("started"):
        return Cause(1, "Restarting", f"pod {pod} starts again: {_end_sentence(container)}")
    if container.get("started") and not container.get("ready"):
        return Cause(2, "NotReady", f"pod {pod} runs, but its readiness check fails")
    return None


def _end_sentence(container: dict[str, Any]) -> str:
    end = last_end(container)
    if end is None:
        return ""
    detail = _brief(end.get("message"))
    said = f": {detail}" if detail else ""
    return f"container {container['name']} ended with code {end.get('exitCode')} ({end.get('reason')}){said}"


def _brief(text: str | None) -> str:
    """Return the last words of a long text: a log ends with what went wrong."""
    words = " ".join((text or "").split())
    return words if len(words) <= MAX_DETAIL else f"… {words[-MAX_DETAIL:]}"
