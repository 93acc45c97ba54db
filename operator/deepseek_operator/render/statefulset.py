"""One group: a StatefulSet whose pods start together, keep their ordinals as node ranks, and are replaced together."""

from typing import Any

from deepseek_operator import names, overlay, quantity
from deepseek_operator.api.v1alpha1 import Vendor
from deepseek_operator.manifest import STATEFUL_SET, Manifest
from deepseek_operator.plan import Plan
from deepseek_operator.render import common
from deepseek_operator.render.services import API_PORT, HEALTH_PORT, STORE_PORT
from deepseek_operator.render.text import rendered

GRACE_SECONDS = 150
"""From a pod's deletion to SIGKILL: the runtime drains for up to 120 s once it gets SIGTERM."""
LAST_CALL_SECONDS = 5
"""From a pod's deletion to SIGTERM: every node's kube-proxy gets to know that new connections belong elsewhere."""
TORCHRUN_GRACE_SECONDS = 140
"""torchrun would kill its ranks 30 s after SIGTERM: longer than they drain, shorter than the pod then has."""
STARTUP_PERIOD = 2
MIN_STARTUP_SECONDS = 1800
ASSUMED_BYTES_PER_SECOND = 100_000_000
SHM_BYTES_PER_DEVICE = 8 * quantity.GIB
SHM_BYTES_PER_CPU_PROCESS = quantity.GIB // 4


def group_stateful_set(*, plan: Plan, index: int, model_bytes: int | None) -> Manifest:
    """Return the StatefulSet of group `index`; `model_bytes` sizes the startup window."""
    name = names.group(plan.key.name, index)
    manifest = common.header(plan, STATEFUL_SET, name=name, role=names.ROLE_RANK, component="engine")
    identity = {names.DEPLOYMENT: plan.key.name, names.ROLE: names.ROLE_RANK, names.GROUP: str(index)}
    labels = {**manifest["metadata"]["labels"], **identity, names.REVISION: plan.revision}
    manifest["metadata"]["labels"] = labels
    spec = {
        "replicas": plan.nodes,
        "serviceName": names.ranks(plan.key.name),
        "podManagementPolicy": "Parallel",
        # The operator replaces a group as a whole; a rolling update would mix two revisions in one group.
        "updateStrategy": {"type": "OnDelete"},
        "selector": {"matchLabels": identity},
        "template": _template(plan, index, labels, model_bytes),
    }
    return {**manifest, "spec": spec}


def _template(plan: Plan, index: int, labels: dict[str, str], model_bytes: int | None) -> Manifest:
    """Return the pod template with the user's overlay; our labels stay, since Services and status rely on them."""
    template: Manifest = {"metadata": {"labels": labels}, "spec": _pod_spec(plan, index, model_bytes)}
    if plan.spec.pod_template:
        template = overlay.merged(template, plan.spec.pod_template)
        template["metadata"]["labels"] = {**template["metadata"].get("labels", {}), **labels}
    return template


def _pod_spec(plan: Plan, index: int, model_bytes: int | None) -> dict[str, Any]:
    return {
        "serviceAccountName": plan.key.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": common.pod_security(),
        "affinity": {"podAntiAffinity": _spread(plan, index)},
        "containers": [_container(plan, index, model_bytes)],
        "volumes": [common.weights_volume(plan), *common.scratch_volumes(), _shared_memory(plan)],
    }


def _spread(plan: Plan, index: int) -> dict[str, Any]:
    """Prefer a node of its own for each pod of a group: two on one node share its links and fall with it."""
    same_group = {"matchLabels": {names.DEPLOYMENT: plan.key.name, names.GROUP: str(index)}}
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": same_group}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _shared_memory(plan: Plan) -> Manifest:
    cpu = plan.spec.accelerator.vendor is Vendor.CPU
    size = plan.per_node * (SHM_BYTES_PER_CPU_PROCESS if cpu else SHM_BYTES_PER_DEVICE)
    # A memory volume of the pod is empty at each start, so that segments of a crashed process do not add up.
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size // 2**20}Mi"}}


def _container(plan: Plan, index: int, model_bytes: int | None) -> dict[str, Any]:
    mounts = [
        {"name": "weights", "mountPath": common.WEIGHTS, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
        *common.scratch_mounts(),
    ]
    ports = [_port("http", API_PORT), _port("health", HEALTH_PORT), _port("store", STORE_PORT)]
    return {
        "name": names.ENGINE_CONTAINER,
        "image": plan.image,
        "imagePullPolicy": plan.settings.image_pull_policy,
        "command": ["/bin/sh", "-c", _script(plan, index)],
        "env": _environment(plan),
        "ports": ports,
        "resources": _resources(plan),
        "securityContext": common.container_security(),
        # Status shows why a container ended; without a message of its own, the end of its log says it.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        # Not the kubelet's own `sleep`, which Kubernetes before 1.30 does not have.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LAST_CALL_SECONDS)]}}},
        **_probes(plan, model_bytes),
    }


def _port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _script(plan: Plan, index: int) -> str:
    return rendered(
        "launch.sh.j2",
        master=names.host(plan.key, index, 0, plan.settings.cluster_domain),
        nodes=plan.nodes,
        per_node=plan.per_node,
        store_port=STORE_PORT,
        arguments=_serve_arguments(plan),
    )


def _serve_arguments(plan: Plan) -> list[str]:
    """Return the arguments of deepseek_runtime.serve, one `--flag=value` each; the user's own come last and win."""
    path = f"{common.WEIGHTS}/{plan.weights.path}".rstrip("/")
    return [
        f"--model={path}",
        *(f"--served-model-name={name}" for name in plan.served_names),
        f"--port={API_PORT}",
        f"--health-port={HEALTH_PORT}",
        *_chosen_arguments(plan),
        *plan.spec.engine.args,
    ]


def _chosen_arguments(plan: Plan) -> list[str]:
    """Return what the spec or the planner chose; whatever neither did has its default in the runtime."""
    chosen = {
        "max-model-len": plan.spec.model.max_model_len,
        "attention": plan.fit.attention,
        "redundant-experts": plan.spec.parallelism.redundant_experts or None,
        "speculative-tokens": plan.spec.speculative_tokens,
    }
    return [f"--{flag}={value}" for flag, value in chosen.items() if value is not None]


def _environment(plan: Plan) -> list[dict[str, Any]]:
    """Return the container's variables; one that the user also names is the user's."""
    interface = plan.spec.network.interface
    # Less than a core is asked for: more threads than cores would spin for each other. `engine.env` overrides it.
    threads = {"OMP_NUM_THREADS": "1"} if plan.spec.accelerator.vendor is Vendor.CPU else {}
    torchrun = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(TORCHRUN_GRACE_SECONDS)}
    fabric = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}
    ours = [
        _from_pod("POD_IP", "status.podIP"),
        _from_pod("POD_NAME", "metadata.name"),
        _from_pod("POD_INDEX", f"metadata.labels['{names.POD_INDEX}']"),
        *common.environment({**common.CACHE_ENV, **torchrun, **threads, **fabric}),
    ]
    theirs = common.environment({variable.name: variable.value for variable in plan.spec.engine.env})
    named = {variable["name"] for variable in theirs}
    return [variable for variable in ours if variable["name"] not in named] + theirs


def _from_pod(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _resources(plan: Plan) -> dict[str, Any]:
    """Return requests by vendor: devices are exclusive, so a pod that holds all of a node's may ask for much beside."""
    per_node = plan.per_node
    if plan.spec.accelerator.vendor is Vendor.CPU:
        return {"requests": {"cpu": f"{250 * per_node}m", "memory": f"{512 * per_node}Mi"}}
    requests = {"cpu": f"{2 * per_node}", "memory": f"{16 * per_node}Gi"}
    return {"requests": requests, "limits": {str(plan.device_resource): str(per_node)}}


def startup_seconds(plan: Plan, model_bytes: int | None) -> int:
    """Return how long a pod may load: twice the bytes at an assumed rate, never under half an hour."""
    if plan.spec.startup.timeout_seconds is not None:
        return plan.spec.startup.timeout_seconds
    return max(MIN_STARTUP_SECONDS, 2 * (model_bytes or 0) // ASSUMED_BYTES_PER_SECOND)


def _probes(plan: Plan, model_bytes: int | None) -> dict[str, Any]:
    """Return the three probes; liveness waits for startup, and no time-out is so short that load looks like death."""
    window = startup_seconds(plan, model_bytes)
    return {
        "startupProbe": _probe("/startupz", period=STARTUP_PERIOD, failures=-(-window // STARTUP_PERIOD)),
        # A minute, because one wrong verdict costs the real model its whole loading time.
        "livenessProbe": _probe("/livez", period=10, failures=6),
        "readinessProbe": _probe("/readyz", period=2, failures=3),
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "health", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
        "successThreshold": 1,
    }
