"""What a cloud would add: addresses for Services of type LoadBalancer, and volumes for claims of class `standard`.

Decisions are pure functions over lists of objects; the loops at the end carry them out on every change.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from .api import Api, Object, Unavailable
from .configs import STORAGE_PROVISIONER
from .layout import BALANCER_PREFIX, Layout

SERVICES = "/api/v1/services"
CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_SELECTED_NODE = "volume.kubernetes.io/selected-node"


def balancer_address(service: Object) -> str | None:
    """The address that the Service's status already shows."""
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or [{}]
    address: str | None = ingress[0].get("ip")
    return address


def missing_addresses(services: list[Object]) -> dict[str, str]:
    """API path of each LoadBalancer Service without an address → the first free address of the pool."""
    balanced = [
        s for s in services if s["spec"].get("type") == "LoadBalancer" and not s["spec"].get("loadBalancerClass")
    ]
    used = {balancer_address(service) for service in balanced}
    free = (a for n in range(1, 255) if (a := f"{BALANCER_PREFIX}{n}") not in used)
    return {_service_path(service): next(free) for service in balanced if not balancer_address(service)}


def _service_path(service: Object) -> str:
    meta = service["metadata"]
    return f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}"


def volume_name(claim: Object) -> str:
    return f"pvc-{claim['metadata']['uid']}"


def claims_to_serve(claims: list[Object], classes: dict[str, Object], existing: set[str]) -> list[Object]:
    """Pending claims of our classes that have no volume yet and, where the class says so, a scheduled consumer."""
    return [c for c in claims if _waits(c) and _may_bind(c, classes) and volume_name(c) not in existing]


def _waits(claim: Object) -> bool:
    return not claim["spec"].get("volumeName") and claim["status"].get("phase") == "Pending"


def _may_bind(claim: Object, classes: dict[str, Object]) -> bool:
    storage_class = classes.get(claim["spec"].get("storageClassName", ""))
    if storage_class is None:
        return False
    scheduled = _SELECTED_NODE in claim["metadata"].get("annotations", {})
    return scheduled or storage_class.get("volumeBindingMode") != "WaitForFirstConsumer"


def volume_for(claim: Object, storage_class: Object, folder: Path) -> Object:
    """A hostPath volume bound to `claim`; every node sees the same folder, so every access mode holds."""
    meta, spec = claim["metadata"], claim["spec"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": meta["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume_name(claim),
            "annotations": {"pv.kubernetes.io/provisioned-by": STORAGE_PROVISIONER},
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "storageClassName": storage_class["metadata"]["name"],
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "hostPath": {"path": str(folder)},
            "claimRef": {**reference, "namespace": meta["namespace"], "name": meta["name"]},
        },
    }


def volumes_to_delete(volumes: list[Object], classes: dict[str, Object]) -> list[Object]:
    """Released volumes of our classes whose policy is Delete."""
    return [
        volume
        for volume in volumes
        if volume["spec"].get("storageClassName") in classes
        and volume["status"].get("phase") == "Released"
        and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    ]


def give_addresses(api: Api) -> None:
    """One pass of the balancer; the addresses are routed to `lo` and served by kube-proxy."""
    for path, address in missing_addresses(api.get(SERVICES)["items"]).items():
        ingress = [{"ip": address, "ipMode": "VIP"}]
        api.patch(f"{path}/status", {"status": {"loadBalancer": {"ingress": ingress}}})


def serve_claims(api: Api, root: Path) -> None:
    """One pass of the provisioner: make the volumes that are wanted, delete those that are released."""
    every_class = api.get(CLASSES)["items"]
    classes = {c["metadata"]["name"]: c for c in every_class if c["provisioner"] == STORAGE_PROVISIONER}
    volumes = api.get(VOLUMES)["items"]
    for volume in volumes_to_delete(volumes, classes):
        api.delete(f"{VOLUMES}/{volume['metadata']['name']}")
        shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
    existing = {volume["metadata"]["name"] for volume in volumes}
    for claim in claims_to_serve(api.get(CLAIMS)["items"], classes, existing):
        folder = root / volume_name(claim)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        api.create(VOLUMES, volume_for(claim, classes[claim["spec"]["storageClassName"]], folder))


def start(layout: Layout, log: Callable[[str], None]) -> None:
    """Run both for as long as this process lives, each pass caused by a change."""
    api = Api(layout.pki / "admin.kubeconfig")
    # Two threads serve claims (a change of either kind matters); one pass at a time.
    one_pass = threading.Lock()

    def balance() -> None:
        give_addresses(api)

    def provision() -> None:
        with one_pass:
            serve_claims(api, layout.volumes)

    for path, reconcile in ((SERVICES, balance), (CLAIMS, provision), (VOLUMES, provision)):
        threading.Thread(target=_on_changes, args=(api, path, reconcile, log), daemon=True).start()


def _on_changes(api: Api, path: str, reconcile: Callable[[], None], log: Callable[[str], None]) -> None:
    for _ in api.changes(path):
        try:
            reconcile()
        except Unavailable as error:
            log(f"{path}: {error!r}")
