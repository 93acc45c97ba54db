"""The two Services: by one the ranks find each other before they are ready, by the other clients find rank 0 after."""

from typing import Any

from deepseek_operator import names
from deepseek_operator.api.v1alpha1 import ServiceType
from deepseek_operator.manifest import SERVICE, Manifest
from deepseek_operator.plan import Plan
from deepseek_operator.render.common import header

API_PORT = 8000
HEALTH_PORT = 8001
STORE_PORT = 29500


def ranks_service(*, plan: Plan) -> Manifest:
    """Return the headless Service; it publishes pods that are not ready, or no group could ever form."""
    manifest = header(plan, SERVICE, name=names.ranks(plan.key.name), role=names.ROLE_RANK, component="engine")
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {names.DEPLOYMENT: plan.key.name, names.ROLE: names.ROLE_RANK},
        "ports": [{"name": "store", "port": STORE_PORT, "targetPort": STORE_PORT, "protocol": "TCP"}],
    }
    return {**manifest, "spec": spec}


def client_service(*, plan: Plan) -> Manifest:
    """Return the Service for clients: rank 0 of every ready group."""
    wanted = plan.spec.service
    manifest = header(plan, SERVICE, name=plan.key.name, role=names.ROLE_CLIENTS, component="endpoint")
    if wanted.annotations:
        manifest["metadata"]["annotations"] = dict(wanted.annotations)
    spec: dict[str, Any] = {
        "type": str(wanted.type),
        "selector": names.leaders(plan.key.name),
        "ports": [{"name": "http", "port": wanted.port, "targetPort": API_PORT, "protocol": "TCP"}],
    }
    if wanted.load_balancer_class:
        spec["loadBalancerClass"] = wanted.load_balancer_class
    if wanted.load_balancer_source_ranges and wanted.type is ServiceType.LOAD_BALANCER:
        spec["loadBalancerSourceRanges"] = list(wanted.load_balancer_source_ranges)
    return {**manifest, "spec": spec}
