"""One pass over one object: observe, plan, decide, apply, status. The only place where all parts meet."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from deepseek_operator import events, names, observe, plan, status, weights
from deepseek_operator.api.v1alpha1 import Status
from deepseek_operator.decide import Action, Apply, Decision, Delete, decide
from deepseek_operator.errors import RejectedError, SpecError
from deepseek_operator.kube import Kube
from deepseek_operator.manifest import BY_KIND, CHILDREN, CLAIM, DEPLOYMENT, Key, Manifest, is_going, name_of
from deepseek_operator.observe import Observed
from deepseek_operator.plan import Plan
from deepseek_operator.settings import Settings

LOGGER = logging.getLogger(__name__)
Clock = Callable[[], datetime]


class Outcome(NamedTuple):
    """What the queue needs to know: whether the object is still there, and when to look again at the latest."""

    exists: bool
    look_again: float | None = None


class Reconciler:
    """Brings the cluster to what one object asks for, a step at a time; keeps nothing between passes."""

    def __init__(self, kube: Kube, settings: Settings, clock: Clock) -> None:
        self._kube = kube
        self._settings = settings
        self._clock = clock

    async def reconcile(self, key: Key) -> Outcome:
        """Make one pass. An error of the user's becomes the status; any other is raised for the queue to retry."""
        manifest = await self._kube.get(DEPLOYMENT, key)
        if manifest is None:
            return Outcome(exists=False)
        if is_going(manifest):
            # The garbage collector does the rest; writing now would make children of a dying parent.
            return Outcome(exists=True)
        try:
            planned = plan.make(manifest, self._settings)
            return await self._pass(manifest, planned)
        except SpecError as error:
            await self._write_status(manifest, status.of_error(manifest, error, now=self._clock()))
            return Outcome(exists=True)

    async def _pass(self, manifest: Manifest, planned: Plan) -> Outcome:
        observed = await self._observe(planned)
        judged = weights.judge(planned, observed)
        judged = status.remembered(judged, status.parse(manifest), planned)
        now = self._clock()
        decision: Decision = decide(planned, observed, judged, now)
        refused = [error for action in decision.actions if (error := await self._tried(planned.key, action))]
        problem = refused[0] if refused else None
        wanted = status.of_plan(manifest, planned, observed, judged, problem=problem, now=now)
        await self._write_status(manifest, wanted)
        return Outcome(exists=True, look_again=decision.look_again)

    async def _observe(self, planned: Plan) -> Observed:
        """Look at every kind at once; the claim is looked up by name as well, since the user may have brought it."""
        key = planned.key
        selector = names.selector(key.name)
        listed = asyncio.gather(*(self._kube.find_all(kind, key.namespace, selector) for kind in CHILDREN))
        claim = self._kube.get(CLAIM, Key(key.namespace, planned.weights.claim))
        found, live_claim = await asyncio.gather(listed, claim)
        return observe.sort(key, planned.uid, itertools.chain(*found), live_claim)

    async def _tried(self, key: Key, action: Action) -> SpecError | None:
        """Act, and return what only the user can put right; the other actions do not wait for that."""
        try:
            await self._act(key, action)
        except SpecError as error:
            return error
        return None

    async def _act(self, key: Key, action: Action) -> None:
        match action:
            case Delete(resource, name, uid):
                LOGGER.info("%s/%s: delete %s %s", *key, resource.kind, name)
                await self._kube.delete(resource, Key(key.namespace, name), uid)
            case Apply(manifest, creates):
                if creates:
                    await self._refuse_strangers(manifest)
                LOGGER.info("%s/%s: apply %s %s", *key, manifest["kind"], name_of(manifest))
                await self._apply(manifest)

    async def _refuse_strangers(self, manifest: Manifest) -> None:
        """Never take over an object that somebody else made under a name that we need."""
        resource, metadata = BY_KIND[manifest["kind"]], manifest["metadata"]
        live = await self._kube.get(resource, Key(metadata["namespace"], metadata["name"]))
        if live is not None and (live["metadata"].get("labels") or {}).get(names.MANAGED_BY) != names.MANAGER:
            raise SpecError(
                "NameTaken",
                f"{resource.kind} {name_of(manifest)} exists and is not this object's; remove it, or choose another "
                "metadata.name",
            )

    async def _apply(self, manifest: Manifest) -> None:
        try:
            await self._kube.apply(manifest)
        except RejectedError as error:
            raise SpecError("Rejected", f"{manifest['kind']} {name_of(manifest)}: {error.message}") from error

    async def _write_status(self, manifest: Manifest, wanted: Status) -> None:
        """Write the status if it says anything new, then tell the change as Events."""
        old = status.parse(manifest)
        if status.dump(wanted) == status.dump(old) and manifest.get("status"):
            return
        key = Key(manifest["metadata"]["namespace"], name_of(manifest))
        await self._kube.apply_status(key, status.dump(wanted))
        for event in events.of_changes(manifest, old.conditions, wanted.conditions, now=self._clock()):
            await self._kube.create(event)
