"""The user's `podTemplate` over ours: the part of Kubernetes' strategic merge that pod templates need.

Maps merge key by key. Lists whose items have an identity merge item by item; every other list is replaced, as the API
server does with them. A map may say `$patch: replace` (take it as it is) or `$patch: delete` (remove what it stands
for); `null` removes a key as well, but kubectl apply drops nulls before they get here.
"""

from typing import Any

from deepseek_operator.manifest import Manifest

DIRECTIVE = "$patch"
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


def merged(base: Any, patch: Any, field: str = "") -> Any:
    """Return `base` with `patch` laid over it; neither is changed. `field` names the list that the two may be."""
    if isinstance(base, dict) and isinstance(patch, dict) and patch.get(DIRECTIVE) != "replace":
        return _merged_map(base, patch)
    if isinstance(base, list) and isinstance(patch, list) and field in MERGE_KEYS:
        return _merged_list(base, patch, MERGE_KEYS[field])
    return _plain(patch)


def _removes(patch: Any) -> bool:
    return patch is None or (isinstance(patch, dict) and patch.get(DIRECTIVE) == "delete")


def _merged_map(base: Manifest, patch: Manifest) -> Manifest:
    result = dict(base)
    for key, value in patch.items():
        if _removes(value):
            result.pop(key, None)
        elif key != DIRECTIVE:
            result[key] = merged(base.get(key), value, key)
    return result


def _merged_list(base: list[Any], patch: list[Any], identity: str) -> list[Any]:
    """Keep our order, change or remove what the patch names, and append what is new."""
    changes = {item[identity]: item for item in patch if isinstance(item, dict) and identity in item}
    known = {item.get(identity) for item in base}
    kept = [
        merged(item, changes.get(item[identity], {})) for item in base if not _removes(changes.get(item[identity], {}))
    ]
    added = [_plain(item) for item in patch if not (isinstance(item, dict) and item.get(identity) in known)]
    return kept + added


def _plain(value: Any) -> Any:
    """Return a value that has nothing below it to merge with, without directives and removals."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != DIRECTIVE and not _removes(item)}
    if isinstance(value, list):
        return [_plain(item) for item in value if not _removes(item)]
    return value
