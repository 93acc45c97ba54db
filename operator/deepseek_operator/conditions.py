"""Conditions: the whole list is built anew at each pass and compared once.

A type that is judged keeps its `lastTransitionTime` for as long as its status stays. `Reconciling` and `Stalled` follow
kstatus: they are present only while true, so that a GitOps tool which never heard of this kind still understands it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from deepseek_operator.api.v1alpha1 import Condition

TruthValue = Literal["True", "False", "Unknown"]

READY = "Ready"
SPEC_VALID = "SpecValid"
FITS = "Fits"
WEIGHTS_READY = "WeightsReady"
GROUPS_READY = "GroupsReady"
ENDPOINT_READY = "EndpointReady"
ROLLOUT_COMPLETE = "RolloutComplete"
SECURED = "Secured"
RECONCILING = "Reconciling"
STALLED = "Stalled"

ALWAYS = (READY, SPEC_VALID, FITS, WEIGHTS_READY, GROUPS_READY, ENDPOINT_READY, ROLLOUT_COMPLETE, SECURED)
"""Types that are present from the first write on."""

AWAITED = (WEIGHTS_READY, GROUPS_READY, ENDPOINT_READY, ROLLOUT_COMPLETE)
"""Types that become true by themselves; while one is false, work is under way."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One condition before it gets its time and generation."""

    type: str
    status: TruthValue
    reason: str
    message: str


def truth(value: bool) -> TruthValue:
    """Return a condition's word for a plain yes or no."""
    return "True" if value else "False"


def timed(
    judgements: Iterable[Judgement], old: Iterable[Condition], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Return the full list of conditions; only a changed status gets a new time."""
    before = {condition.type: condition for condition in old}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def since(judgement: Judgement) -> str:
        last = before.get(judgement.type)
        return last.last_transition_time if last and last.status == judgement.status else stamp

    return tuple(
        Condition(
            type=judgement.type,
            status=judgement.status,
            reason=judgement.reason,
            message=judgement.message,
            last_transition_time=since(judgement),
            observed_generation=generation,
        )
        for judgement in judgements
    )


def summarised(judgements: list[Judgement], *, progressing: bool, stalled: bool) -> list[Judgement]:
    """Return the list with `Ready` in front, and with `Reconciling` or `Stalled` behind while they are true.

    `Ready` is true if everything that serving needs is; otherwise it carries the first reason why not.
    """
    needed = (SPEC_VALID, FITS, WEIGHTS_READY, GROUPS_READY, ENDPOINT_READY)
    # Fits may stay Unknown for ever (a checkpoint that nobody listed) and serve all the same.
    missing = [
        judgement
        for judgement in judgements
        if judgement.type in needed
        and judgement.status != "True"
        and (judgement.type, judgement.status) != (FITS, "Unknown")
    ]
    if missing:
        ready = Judgement(READY, "False", missing[0].reason, missing[0].message)
    else:
        ready = Judgement(READY, "True", "Serving", "every group serves and clients have an address")
    result = [ready, *judgements]
    if stalled:
        result.append(Judgement(STALLED, "True", ready.reason, ready.message))
    elif progressing:
        result.append(Judgement(RECONCILING, "True", ready.reason if missing else "RollingOut", ready.message))
    return result
