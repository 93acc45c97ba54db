"""Events on the user's object: one for each change of a condition that a person may want to know, and no more.

kopf's recorder is off: it makes an Event of every log line. A condition that does not change makes none, so a quiet
cluster stays quiet, and `kubectl describe dsv3` reads as the object's history.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime

from deepseek_operator import conditions
from deepseek_operator.api.v1alpha1 import Condition
from deepseek_operator.manifest import EVENT, Manifest, digest, name_of, uid_of
from deepseek_operator.names import MANAGER

TOLD = (
    conditions.READY,
    conditions.SPEC_VALID,
    conditions.FITS,
    conditions.WEIGHTS_READY,
    conditions.ENDPOINT_READY,
)
MAX_MESSAGE = 1000


def of_changes(
    manifest: Manifest, old: Iterable[Condition], new: Iterable[Condition], *, now: datetime
) -> Iterator[Manifest]:
    """Yield an Event for each told condition that is news; `Unknown` is nothing to tell."""
    before = {condition.type: condition for condition in old}
    for condition in new:
        if condition.type in TOLD and condition.status != "Unknown" and _is_news(before.get(condition.type), condition):
            yield _event(manifest, condition, now)


def _is_news(old: Condition | None, new: Condition) -> bool:
    """Tell news from the expected: how an object begins, and a summary that repeats another condition's reason."""
    if old is None:
        return _is_alarming(new) if new.type in (conditions.READY, conditions.SPEC_VALID) else new.status == "True"
    if new.type == conditions.READY:
        return old.status != new.status
    return (old.status, old.reason) != (new.status, new.reason)


def _event(manifest: Manifest, condition: Condition, now: datetime) -> Manifest:
    name, namespace = name_of(manifest), manifest["metadata"]["namespace"]
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    unique = digest([uid_of(manifest), condition.type, condition.reason, now.isoformat()], 16)
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{name}.{unique}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": manifest["apiVersion"],
            "kind": manifest["kind"],
            "name": name,
            "namespace": namespace,
            "uid": uid_of(manifest),
        },
        "type": "Warning" if _is_alarming(condition) else "Normal",
        "reason": condition.reason,
        "message": f"{condition.type}={condition.status}: {condition.message}"[:MAX_MESSAGE],
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


def _is_alarming(condition: Condition) -> bool:
    """Tell a failure from a step on the way."""
    way = {"DownloadPending", "Downloading", "Starting", "AddressPending", "Pending", "WaitingForWeights", "Creating"}
    asked_for = {"Suspended", "ScaledToZero", "RollingOut", "PodsMissing", "Terminating", "ContainerCreating"}
    return condition.status == "False" and condition.reason not in way | asked_for
