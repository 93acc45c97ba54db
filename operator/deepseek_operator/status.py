"""The status: what the plan wants beside what the cluster shows, computed anew at each pass and never read as memory.

One exception, on purpose: commit and size of verified weights are told by the download Job's pod, and a pod may be gone
long before its Job. As long as the same Job stands, what it said stands.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from deepseek_operator import causes, conditions, names
from deepseek_operator.api import v1alpha1 as api
from deepseek_operator.conditions import Judgement, truth
from deepseek_operator.errors import SpecError
from deepseek_operator.manifest import SERVICE, Manifest, name_of, uid_of
from deepseek_operator.observe import Group, Observed
from deepseek_operator.plan import Plan
from deepseek_operator.weights import WeightsState

_NOT_REACHED = "the object was not judged so far"


def parse(manifest: Manifest) -> api.Status:
    """Return the status that the object carries; one of another version counts as none."""
    try:
        return api.Status.model_validate(manifest.get("status") or {})
    except ValueError:
        return api.Status()


def dump(status: api.Status) -> dict[str, Any]:
    """Return the status as it goes to the API server: absent, never null."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def remembered(weights: WeightsState, old: api.Status, plan: Plan) -> WeightsState:
    """Return the weights' state with commit and size from the last status, where the Job's pod is gone."""
    known = old.model
    if not weights.ready or weights.bytes is not None or known is None or old.weights is None:
        return weights
    if old.weights.content != plan.weights.hash:
        return weights
    message = next((c.message for c in old.conditions if c.type == conditions.WEIGHTS_READY), weights.message)
    return WeightsState(weights.phase, weights.reason, message, known.revision, known.bytes)


def of_plan(
    manifest: Manifest,
    plan: Plan,
    observed: Observed,
    weights: WeightsState,
    *,
    problem: SpecError | None = None,
    now: datetime,
) -> api.Status:
    """Return the status of an object that could be planned; `problem` is what the API server refused of it."""
    old = parse(manifest)
    groups = tuple(_group(plan, observed.groups.get(index), index, weights) for index in range(plan.groups))
    ready, updated = sum(group.ready for group in groups), _updated(plan, observed)
    judged = _judged(plan, observed, weights, groups, problem)
    stalled = plan.fit.verdict == "False" or problem is not None
    unfinished = any(judgement.status == "False" for judgement in judged if judgement.type in conditions.AWAITED)
    summary = conditions.summarised(judged, progressing=unfinished and plan.groups > 0, stalled=stalled)
    return api.Status(
        observed_generation=manifest["metadata"]["generation"],
        conditions=_timed(summary, manifest, old, now),
        replicas=sum(index in observed.groups for index in range(plan.groups)),
        ready_replicas=ready,
        updated_replicas=updated,
        groups_summary=f"{ready}/{plan.groups}",
        selector=",".join(f"{key}={value}" for key, value in names.leaders(plan.key.name).items()),
        revision=plan.revision,
        endpoint=_endpoint(plan, observed)[0],
        model=api.ModelStatus(name=_model_name(plan), revision=weights.commit, bytes=weights.bytes),
        weights=api.WeightsStatus(
            phase=weights.phase, claim_name=plan.weights.claim, content=plan.weights.hash or None
        ),
        plan=api.PlanStatus(
            nodes=plan.nodes,
            accelerators=plan.ranks,
            attention=plan.fit.attention,
            weight_bytes_per_accelerator=plan.fit.weight_bytes_per_accelerator,
        ),
        groups=groups,
    )


def _judged(
    plan: Plan,
    observed: Observed,
    weights: WeightsState,
    groups: tuple[api.GroupStatus, ...],
    problem: SpecError | None,
) -> list[Judgement]:
    """Return every condition but the summaries."""
    return [
        _spec_judgement(problem),
        Judgement(conditions.FITS, plan.fit.verdict, plan.fit.reason, plan.fit.message),
        Judgement(conditions.WEIGHTS_READY, truth(weights.ready), weights.reason, weights.message),
        _groups_judgement(plan, groups),
        _endpoint(plan, observed)[1],
        _rollout_judgement(plan, _updated(plan, observed)),
        _secured(plan),
    ]


def of_error(manifest: Manifest, error: SpecError, *, now: datetime) -> api.Status:
    """Return the status of an object that only its author can put right; what runs is left as it is."""
    old = parse(manifest)
    kept = {condition.type: condition for condition in old.conditions}
    others = [
        Judgement(name, kept[name].status, kept[name].reason, kept[name].message)
        if name in kept
        else Judgement(name, "Unknown", "NotReached", _NOT_REACHED)
        for name in conditions.ALWAYS
        if name not in (conditions.READY, conditions.SPEC_VALID)
    ]
    judged = conditions.summarised([_spec_judgement(error), *others], progressing=False, stalled=True)
    return old.model_copy(
        update={
            "observed_generation": manifest["metadata"]["generation"],
            "conditions": _timed(judged, manifest, old, now),
        }
    )


def _timed(
    judged: Iterable[Judgement], manifest: Manifest, old: api.Status, now: datetime
) -> tuple[api.Condition, ...]:
    generation = manifest["metadata"]["generation"]
    return conditions.timed(judged, old.conditions, generation=generation, now=now)


def _model_name(plan: Plan) -> str:
    """Return the model's name as people say it: without scheme and organisation."""
    return plan.spec.model.source.rstrip("/").rpartition("/")[2]


def _spec_judgement(problem: SpecError | None) -> Judgement:
    if problem is not None:
        return Judgement(conditions.SPEC_VALID, "False", problem.reason, problem.message)
    return Judgement(conditions.SPEC_VALID, "True", "Valid", "the spec is complete")


def _rollout_judgement(plan: Plan, updated: int) -> Judgement:
    done = updated == plan.groups
    message = f"{updated} of {plan.groups} groups run revision {plan.revision}"
    return Judgement(conditions.ROLLOUT_COMPLETE, truth(done), "Complete" if done else "RollingOut", message)


def _updated(plan: Plan, observed: Observed) -> int:
    """Return how many groups have the wanted revision and nothing of a former one."""
    wanted = [group for group in observed.groups.values() if group.index < plan.groups]
    return sum(group.revision == plan.revision and not group.outdated() for group in wanted)


def _secured(plan: Plan) -> Judgement:
    ranges = plan.spec.service.load_balancer_source_ranges
    who = f"whoever comes from {', '.join(ranges)}" if ranges else "whoever reaches the Service"
    return Judgement(conditions.SECURED, "False", "NoApiKeys", f"{who} may use the endpoint; no key is asked for")


def _groups_judgement(plan: Plan, groups: tuple[api.GroupStatus, ...]) -> Judgement:
    """Return the condition of all groups, with the reason of the one that is worst off."""
    ready = sum(group.ready for group in groups)
    counted = f"{ready} of {plan.groups} groups ready"
    if plan.spec.suspend:
        return Judgement(conditions.GROUPS_READY, "False", "Suspended", "spec.suspend is true: no pods run")
    if plan.groups == 0:
        return Judgement(conditions.GROUPS_READY, "False", "ScaledToZero", "spec.replicas is 0: no pods run")
    if ready == plan.groups:
        return Judgement(conditions.GROUPS_READY, "True", "AllReady", counted)
    waiting = [group for group in groups if not group.ready]
    worst = next((group for group in waiting if group.phase is api.GroupPhase.FAILING), waiting[0])
    return Judgement(conditions.GROUPS_READY, "False", worst.reason or "Starting", f"{counted}; {worst.message}")


def _group(plan: Plan, group: Group | None, index: int, weights: WeightsState) -> api.GroupStatus:
    if group is None:
        reason, message = ("Creating", f"group {index} is being created")
        if not weights.ready:
            reason, message = ("WaitingForWeights", f"group {index} waits for verified weights")
        return api.GroupStatus(index=index, phase=api.GroupPhase.PENDING, ready=False, reason=reason, message=message)
    phase, cause = _phase(group)
    return api.GroupStatus(
        index=index,
        phase=phase,
        ready=group.ready,
        revision=group.revision,
        restarts=sum(map(causes.restarts, group.pods)),
        reason=cause.reason if cause else None,
        message=cause.message if cause else None,
        pods=tuple(map(_pod, group.pods)),
    )


def _phase(group: Group) -> tuple[api.GroupPhase, causes.Cause | None]:
    if group.ready:
        return api.GroupPhase.READY, None
    cause = causes.worst([cause for pod in group.pods if (cause := causes.cause_of(pod))])
    if cause is not None and cause.is_failure:
        return api.GroupPhase.FAILING, cause
    if group.outdated():
        message = f"{len(group.outdated())} pods of the former revision are being replaced"
        return api.GroupPhase.UPDATING, causes.Cause(1, "RollingOut", message)
    if len(group.pods) < group.size:
        message = f"{len(group.pods)} of {group.size} pods of group {group.index} exist"
        return api.GroupPhase.STARTING, causes.Cause(1, "PodsMissing", message)
    return api.GroupPhase.STARTING, cause


def _pod(pod: Manifest) -> api.PodStatus:
    return api.PodStatus(
        name=name_of(pod), uid=uid_of(pod), node=pod["spec"].get("nodeName"), ready=causes.is_ready(pod)
    )


def _endpoint(plan: Plan, observed: Observed) -> tuple[str | None, Judgement]:
    """Return the URL for clients, and whether there is one."""
    wanted = plan.spec.service
    service = observed.find(SERVICE.kind, plan.key.name)
    if service is None:
        return None, Judgement(conditions.ENDPOINT_READY, "False", "Pending", "the Service does not exist yet")
    if wanted.type is not api.ServiceType.LOAD_BALANCER:
        host = f"{plan.key.name}.{plan.key.namespace}.svc.{plan.settings.cluster_domain}"
        return _found(host, wanted.port, f"clients inside the cluster use the Service of type {wanted.type}")
    addresses = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    address = next((entry.get("ip") or entry.get("hostname") for entry in addresses), None)
    if address is None:
        message = f"Service {plan.key.name} has no load-balancer address yet; does the cluster provide one?"
        return None, Judgement(conditions.ENDPOINT_READY, "False", "AddressPending", message)
    host = f"[{address}]" if ":" in address else str(address)
    return _found(host, wanted.port, "the load balancer has an address")


def _found(host: str, port: int, message: str) -> tuple[str, Judgement]:
    url = f"http://{host}" if port == 80 else f"http://{host}:{port}"
    return url, Judgement(conditions.ENDPOINT_READY, "True", "AddressReady", message)
