"""Names and labels of everything that belongs to one DeepSeekV3Deployment.

Every name derives from the object's, which admission holds to 40 characters; the longest, a StatefulSet's
controller-revision-hash label, is then 40 + 4 + 11 of the 63 that a label may have.
"""

from deepseek_operator.api import v1alpha1 as api
from deepseek_operator.manifest import Key

MANAGER = "dsv3-operator"
MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "app.kubernetes.io/instance"
POD_INDEX = "apps.kubernetes.io/pod-index"
DEPLOYMENT = f"{api.GROUP}/deployment"
GROUP = f"{api.GROUP}/group"
REVISION = f"{api.GROUP}/revision"
ROLE = f"{api.GROUP}/role"

ROLE_WEIGHTS = "weights"
ROLE_RANK = "rank"
ROLE_CLIENTS = "clients"

DOWNLOAD_CONTAINER = "download"
ENGINE_CONTAINER = "engine"


def claim(name: str) -> str:
    """Return the name of the weights claim that the operator makes."""
    return f"{name}-weights"


def job(name: str, weights_hash: str) -> str:
    """Return the name of the download Job for one content of the claim."""
    return f"{name}-weights-{weights_hash}"


def ranks(name: str) -> str:
    """Return the name of the headless Service, the subdomain of every pod."""
    return f"{name}-ranks"


def group(name: str, index: int) -> str:
    """Return the name of one group's StatefulSet."""
    return f"{name}-g{index}"


def pod(name: str, index: int, rank: int) -> str:
    """Return the name of one pod: group `index`, node rank `rank`."""
    return f"{group(name, index)}-{rank}"


def host(key: Key, index: int, rank: int, domain: str) -> str:
    """Return the full DNS name of a pod; torchrun knows itself as rank 0 only by the full name."""
    return f"{pod(key.name, index, rank)}.{ranks(key.name)}.{key.namespace}.svc.{domain}"


def labels(name: str, role: str, component: str) -> dict[str, str]:
    """Return the labels of a child. Nothing is copied from the user's object: a copied tracking label gets pruned."""
    return {
        "app.kubernetes.io/name": "deepseek-v3",
        INSTANCE: name,
        "app.kubernetes.io/component": component,
        MANAGED_BY: MANAGER,
        DEPLOYMENT: name,
        ROLE: role,
    }


def selector(name: str) -> str:
    """Return the label selector that finds every child of one object."""
    return f"{MANAGED_BY}={MANAGER},{DEPLOYMENT}={name}"


def leaders(name: str) -> dict[str, str]:
    """Return the labels that select rank 0 of every group: what clients and autoscalers look at."""
    return {DEPLOYMENT: name, ROLE: ROLE_RANK, POD_INDEX: "0"}
