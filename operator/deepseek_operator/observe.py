"""What the cluster shows of one object's children, sorted: ours, and those that are in the way.

An object that carries our labels but is controlled by another UID belongs to a former object of the same name; it is
about to be collected and must be neither adopted nor counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deepseek_operator import names
from deepseek_operator.causes import is_ready
from deepseek_operator.manifest import POD, STATEFUL_SET, Key, Manifest, controller_of, labels_of, name_of, uid_of

Identity = tuple[str, str]
"""Kind and name."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group as it is: its StatefulSet and the pods of its index."""

    index: int
    stateful_set: Manifest | None
    pods: tuple[Manifest, ...]

    @property
    def revision(self) -> str | None:
        """Revision that the StatefulSet makes pods of."""
        return labels_of(self.stateful_set).get(names.REVISION) if self.stateful_set else None

    @property
    def size(self) -> int:
        """Pods that the StatefulSet wants."""
        return int(self.stateful_set["spec"]["replicas"]) if self.stateful_set else 0

    def outdated(self) -> list[Manifest]:
        """Return pods of another revision than the StatefulSet's, which a rollout has yet to replace."""
        return [pod for pod in self.pods if labels_of(pod).get(names.REVISION) != self.revision]

    @property
    def ready(self) -> bool:
        """Tell whether the whole group serves, with one revision."""
        return 0 < self.size == len(self.pods) and all(map(is_ready, self.pods)) and not self.outdated()


@dataclass(frozen=True, slots=True)
class Observed:
    """All children of one object, from one look at the cluster."""

    objects: Mapping[Identity, Manifest] = field(default_factory=dict)
    foreign: Mapping[Identity, Manifest] = field(default_factory=dict)
    groups: Mapping[int, Group] = field(default_factory=dict)
    weights_pods: tuple[Manifest, ...] = ()
    claim: Manifest | None = None
    """The claim that holds the weights, whoever made it."""

    def find(self, kind: str, name: str) -> Manifest | None:
        """Return one of our children."""
        return self.objects.get((kind, name))


def sort(key: Key, uid: str, listed: Iterable[Manifest], claim: Manifest | None) -> Observed:
    """Return what the listed objects are to the object `uid`; `claim` was looked up by its name."""
    objects: dict[Identity, Manifest] = {}
    foreign: dict[Identity, Manifest] = {}
    pods: list[Manifest] = []
    for manifest in listed:
        if manifest["kind"] == POD.kind:
            pods.append(manifest)
        else:
            ours = controller_of(manifest) in (None, uid)
            (objects if ours else foreign)[manifest["kind"], name_of(manifest)] = manifest
    owners = {uid_of(manifest) for manifest in objects.values()}
    own_pods = sorted((pod for pod in pods if controller_of(pod) in owners), key=name_of)
    return Observed(
        objects=objects,
        foreign=foreign,
        groups=_groups(key.name, objects, own_pods),
        weights_pods=tuple(pod for pod in own_pods if labels_of(pod).get(names.ROLE) == names.ROLE_WEIGHTS),
        claim=claim,
    )


def _groups(name: str, objects: Mapping[Identity, Manifest], pods: list[Manifest]) -> dict[int, Group]:
    sets = [manifest for (kind, _), manifest in objects.items() if kind == STATEFUL_SET.kind]
    groups = {}
    for stateful_set in sets:
        index = int(labels_of(stateful_set)[names.GROUP])
        members = tuple(pod for pod in pods if controller_of(pod) == uid_of(stateful_set))
        groups[index] = Group(index, stateful_set, members)
    return dict(sorted(groups.items()))
