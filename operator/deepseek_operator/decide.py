"""What to do now: from the plan and what the cluster shows to a short list of actions. Pure, so every case is a test.

One rule holds the groups together: a StatefulSet is written only at its group's turn. Until then it keeps the template
it has, so that a pod restarting by itself comes back with the revision of its group and never with a newer one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from deepseek_operator import names
from deepseek_operator.manifest import (
    CLAIM,
    JOB,
    POD,
    STATEFUL_SET,
    Manifest,
    Resource,
    applied_hash,
    is_applied,
    is_going,
    name_of,
    stamped,
    uid_of,
)
from deepseek_operator.observe import Group, Observed
from deepseek_operator.plan import Plan
from deepseek_operator.render.claim import claim
from deepseek_operator.render.job import download_job
from deepseek_operator.render.serviceaccount import service_account
from deepseek_operator.render.services import client_service, ranks_service
from deepseek_operator.render.statefulset import group_stateful_set
from deepseek_operator.weights import LONGEST_WAIT, WeightsState

FOREIGN_RETRY = 2.0


@dataclass(frozen=True, slots=True)
class Apply:
    """Create or update an object; `creates` is true where none of that name was seen among ours."""

    manifest: Manifest
    creates: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete exactly this object: the UID keeps a younger one of the same name safe."""

    resource: Resource
    name: str
    uid: str


Action = Apply | Delete


@dataclass(frozen=True, slots=True)
class Decision:
    """Actions in order, and the seconds after which to look again even if nothing happens."""

    actions: tuple[Action, ...] = ()
    look_again: float | None = None


def decide(plan: Plan, observed: Observed, weights: WeightsState, now: datetime) -> Decision:
    """Return what brings the cluster closer to the plan."""
    if plan.fit.verdict == "False":
        return Decision()
    actions = [
        *_foundation(plan, observed),
        *_download(plan, observed, weights, now),
        *_surplus(plan, observed, weights),
    ]
    if weights.ready:
        actions += _groups(plan, observed, weights.bytes)
    waits = [*_retry_wait(weights, now), *([FOREIGN_RETRY] if observed.foreign else [])]
    return Decision(tuple(actions), min(waits, default=None))


def _foundation(plan: Plan, observed: Observed) -> Iterator[Action]:
    """Yield what every object has from its first minute, the address for clients included: it may take time to get."""
    live_claim = observed.find(CLAIM.kind, plan.weights.claim)
    for manifest in (
        service_account(plan=plan),
        claim(plan=plan, live=live_claim),
        ranks_service(plan=plan),
        client_service(plan=plan),
    ):
        if manifest is not None:
            yield from _applied(manifest, observed)


def _applied(manifest: Manifest, observed: Observed) -> Iterator[Action]:
    """Yield the write that makes an object as wanted, or nothing if it is, or cannot be for now."""
    desired = stamped(manifest)
    identity = desired["kind"], name_of(desired)
    live = observed.objects.get(identity)
    if identity in observed.foreign or (live is not None and is_going(live)):
        return
    if live is None or not is_applied(desired, live):
        yield Apply(desired, creates=live is None)


def _download(plan: Plan, observed: Observed, weights: WeightsState, now: datetime) -> Iterator[Action]:
    """Yield the start of the download, or its replacement where waiting or a mended template calls for a new Job."""
    manifest = None if plan.spec.suspend else download_job(plan=plan)
    if manifest is None:
        return
    desired = stamped(manifest)
    live = observed.find(JOB.kind, name_of(desired))
    if live is None:
        yield from _applied(manifest, observed)
    elif is_going(live) or weights.ready:
        return
    elif applied_hash(live) != applied_hash(desired) or 0 in _retry_wait(weights, now):
        # A Job's template is immutable; what is already downloaded and verified stays in the claim.
        yield _deletion(JOB, live)


def _retry_wait(weights: WeightsState, now: datetime) -> list[float]:
    """Return how long a failed download still has to wait for its next try, if the kubelet is holding it back."""
    if weights.waiting_since is None:
        return []
    due = weights.waiting_since + timedelta(seconds=LONGEST_WAIT)
    return [max(0.0, (due - now).total_seconds())]


def _surplus(plan: Plan, observed: Observed, weights: WeightsState) -> Iterator[Action]:
    """Yield the removal of groups beyond the wanted number and of Jobs that are no longer wanted."""
    for group in observed.groups.values():
        if group.index >= plan.groups and group.stateful_set is not None and not is_going(group.stateful_set):
            yield _deletion(STATEFUL_SET, group.stateful_set)
    # A finished Job is the proof that the weights are verified: it stays, suspended or not.
    keep = weights.ready or not plan.spec.suspend
    wanted = names.job(plan.key.name, plan.weights.hash) if keep else None
    for (kind, name), manifest in observed.objects.items():
        if kind == JOB.kind and name != wanted and not is_going(manifest):
            yield _deletion(JOB, manifest)


def _groups(plan: Plan, observed: Observed, model_bytes: int | None) -> Iterator[Action]:
    turn = groups_to_roll(plan, observed)
    for index in range(plan.groups):
        group = observed.groups.get(index, Group(index, None, ()))
        manifest = group_stateful_set(plan=plan, index=index, model_bytes=model_bytes)
        if group.stateful_set is None or index in turn:
            yield from _applied(manifest, observed)
        elif group.revision == plan.revision:
            yield from _repaired(manifest, group, observed)
            yield from _replaced_pods(group)


def groups_to_roll(plan: Plan, observed: Observed) -> set[int]:
    """Return the groups that may move to the wanted revision now.

    A group that does not serve moves at once, since nothing is lost: so a broken revision never blocks its own repair.
    Of those that serve, one moves at a time, and only while every other wanted group serves.
    """
    wanted = [observed.groups.get(index, Group(index, None, ())) for index in range(plan.groups)]
    outdated = [group for group in wanted if group.stateful_set and group.revision != plan.revision]
    unready = {group.index for group in outdated if not group.ready}
    if all(group.ready for group in wanted) and outdated:
        return {outdated[0].index}
    return unready


def _repaired(manifest: Manifest, group: Group, observed: Observed) -> Iterator[Action]:
    """Yield a write that undoes somebody else's change, but none for a template that only a newer operator wants."""
    live = group.stateful_set or {}
    if applied_hash(live) == applied_hash(stamped(manifest)):
        yield from _applied(manifest, observed)


def _replaced_pods(group: Group) -> Iterator[Action]:
    """Yield the removal of all pods of a former revision, once the StatefulSet's controller knows the new one."""
    stateful_set = group.stateful_set or {}
    if stateful_set.get("status", {}).get("observedGeneration") != stateful_set.get("metadata", {}).get("generation"):
        return
    for pod in group.outdated():
        if not is_going(pod):
            yield _deletion(POD, pod)


def _deletion(resource: Resource, manifest: Manifest) -> Delete:
    return Delete(resource, name_of(manifest), uid_of(manifest))
