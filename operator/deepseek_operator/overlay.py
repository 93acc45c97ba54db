"""The user's `podTemplate` over ours: the part of Kubernetes' strategic merge that pod templates need.

Maps merge key by key and `null` removes a key. Lists whose items have an identity merge item by item; every other list
is replaced, as the API server does with them.
"""

from typing import Any

from deepseek_operator.manifest import Manifest

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
    if isinstance(base, dict) and isinstance(patch, dict):
        return _merged_map(base, patch)
    if isinstance(base, list) and isinstance(patch, list) and field in MERGE_KEYS:
        return _merged_list(base, patch, MERGE_KEYS[field])
    return _without_nulls(patch)


def _merged_map(base: Manifest, patch: Manifest) -> Manifest:
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(base.get(key), value, key)
    return result


def _merged_list(base: list[Any], patch: list[Any], identity: str) -> list[Any]:
    """Keep our order, change what the patch names, and append what is new."""
    changes = {item[identity]: item for item in patch if isinstance(item, dict) and identity in item}
    known = {item.get(identity) for item in base}
    kept = [merged(item, changes[item[identity]]) if item.get(identity) in changes else item for item in base]
    added = [_without_nulls(item) for item in patch if not (isinstance(item, dict) and item.get(identity) in known)]
    return kept + added


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
