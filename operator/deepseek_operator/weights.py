"""The state of the weights, read off the claim, the download Job and the Job's pod.

The contract with the Job is in docs/architecture.md: its termination message is JSON, of a success or of a failure.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deepseek_operator import causes, names
from deepseek_operator.api.v1alpha1 import AccessMode, WeightsPhase
from deepseek_operator.manifest import JOB, Manifest, controller_of, is_going, name_of, uid_of
from deepseek_operator.observe import Observed
from deepseek_operator.plan import Plan

# The kubelet waits 10, 20, 40, 80 … 300 s between tries. From here on the Job is made anew, so that a mended source is
# noticed within a minute and not within five.
LONGEST_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class WeightsState:
    """One sentence about the weights, and what is known of them."""

    phase: WeightsPhase
    reason: str
    message: str
    commit: str | None = None
    bytes: int | None = None
    waiting_since: datetime | None = None
    """When the last try failed, if the kubelet is holding back the next one."""

    @property
    def ready(self) -> bool:
        """Tell whether serving pods may start."""
        return self.phase is WeightsPhase.READY


def judge(plan: Plan, observed: Observed) -> WeightsState:
    """Return where the weights are on their way to the claim."""
    trouble = _claim_trouble(plan, observed)
    if trouble is not None:
        return trouble
    if not plan.weights.downloads:
        return WeightsState(WeightsPhase.READY, "ClaimGiven", f"the model is read from {plan.spec.model.source}")
    job = observed.find(JOB.kind, names.job(plan.key.name, plan.weights.hash))
    if job is None or is_going(job):
        return WeightsState(WeightsPhase.PENDING, "DownloadPending", "the download has not started")
    return _job_state(plan, job, observed)


def _claim_trouble(plan: Plan, observed: Observed) -> WeightsState | None:
    claim, weights = observed.claim, plan.weights
    if claim is None:
        if weights.makes_claim:
            return None
        message = f"claim {weights.claim} does not exist in namespace {plan.key.namespace}; create it or name another"
        return WeightsState(WeightsPhase.PENDING, "ClaimNotFound", message)
    modes = claim.get("spec", {}).get("accessModes") or []
    single = {AccessMode.READ_WRITE_ONCE, AccessMode.READ_WRITE_ONCE_POD}
    if plan.shares_claim and modes and single.issuperset(modes):
        pods = f"{plan.nodes} nodes × {plan.spec.replicas} replicas"
        message = (
            f"claim {weights.claim} is {', '.join(modes)}, but {pods} mount it; "
            "use a claim with ReadWriteMany, or lower nodes and replicas to one pod"
        )
        return WeightsState(WeightsPhase.PENDING, "ClaimNotShareable", message)
    if claim.get("status", {}).get("phase") == "Lost":
        return WeightsState(WeightsPhase.PENDING, "ClaimLost", f"claim {weights.claim} has lost its volume")
    return None


def _job_state(plan: Plan, job: Manifest, observed: Observed) -> WeightsState:
    container = _download_container(job, observed)
    end = causes.last_end(container) if container else None
    said = _message(end)
    if causes.conditions_of(job).get("Complete", {}).get("status") == "True":
        return _ready(said)
    if end is not None and end.get("exitCode") != 0:
        return _failure(container or {}, end, said)
    return _underway(plan, job, observed)


def _download_container(job: Manifest, observed: Observed) -> dict[str, Any] | None:
    """Return the state of the download container of the Job's newest pod."""
    pods = _pods_of(job, observed)
    newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)
    states = causes.containers(newest) if newest else []
    return next((state for state in states if state["name"] == names.DOWNLOAD_CONTAINER), None)


def _pods_of(job: Manifest, observed: Observed) -> list[Manifest]:
    return [pod for pod in observed.weights_pods if controller_of(pod) == uid_of(job)]


def _message(end: dict[str, Any] | None) -> dict[str, Any]:
    """Return the termination message; anything but a JSON object is shown as the error's text."""
    text = (end or {}).get("message") or ""
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"error": text}


def _ready(said: dict[str, Any]) -> WeightsState:
    size, files = said.get("bytes"), said.get("files")
    amount = f"{files} files, {size} bytes, " if size is not None else ""
    return WeightsState(WeightsPhase.READY, "Verified", f"{amount}every hash is the source's", said.get("commit"), size)


def _failure(container: dict[str, Any], end: dict[str, Any], said: dict[str, Any]) -> WeightsState:
    file, error = said.get("file"), " ".join(str(said.get("error") or "").split())
    reason = "VerificationFailed" if file else "DownloadFailed"
    subject = f"{file}: " if file and str(file) not in error else ""
    ended = f"the download ended with code {end.get('exitCode')} ({end.get('reason')})"
    text = f"{subject}{error or ended}"
    waits = ((container.get("state") or {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff"
    finished = end.get("finishedAt")
    since = datetime.fromisoformat(finished) if waits and finished else None
    return WeightsState(WeightsPhase.FAILING, reason, f"{text[:2000]}; it is tried again", waiting_since=since)


def _underway(plan: Plan, job: Manifest, observed: Observed) -> WeightsState:
    pods = _pods_of(job, observed)
    cause = causes.worst([cause for pod in pods if (cause := causes.cause_of(pod)) and cause.is_failure])
    if cause is not None and cause.reason != "NotReady":
        return WeightsState(WeightsPhase.PENDING, cause.reason, cause.message)
    if not pods:
        return WeightsState(WeightsPhase.PENDING, "DownloadPending", f"Job {name_of(job)} has no pod yet")
    source = f"{plan.spec.model.source} at {plan.spec.model.revision}"
    return WeightsState(WeightsPhase.DOWNLOADING, "Downloading", f"{source} is being downloaded and verified")
