"""The download Job: the only writer of the weights, which it verifies before any device is held."""

from typing import Any

from deepseek_operator import names
from deepseek_operator.manifest import JOB, Manifest
from deepseek_operator.plan import Plan
from deepseek_operator.render import common

# Retrying is the kubelet's and ours to pace; the Job must never give up and take the last error away with its pod.
NEVER_GIVE_UP = 2**31 - 1
TERMINATION_LOG = "/dev/termination-log"


def download_job(*, plan: Plan) -> Manifest | None:
    """Return the Job that fills the claim, or None where the weights are read from the user's own claim."""
    if not plan.weights.downloads:
        return None
    name = names.job(plan.key.name, plan.weights.hash)
    manifest = common.header(plan, JOB, name=name, role=names.ROLE_WEIGHTS, component="weights")
    template = {"metadata": {"labels": manifest["metadata"]["labels"]}, "spec": _pod_spec(plan)}
    spec = {
        "backoffLimit": NEVER_GIVE_UP,
        # A second writer beside a pod that is still ending would write into the same files.
        "podReplacementPolicy": "Failed",
        "template": template,
    }
    return {**manifest, "spec": spec}


def _pod_spec(plan: Plan) -> dict[str, Any]:
    return {
        "restartPolicy": "OnFailure",
        "serviceAccountName": plan.key.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": common.pod_security(),
        "containers": [_container(plan)],
        "volumes": [common.weights_volume(plan), *common.scratch_volumes()],
    }


def _container(plan: Plan) -> dict[str, Any]:
    return {
        "name": names.DOWNLOAD_CONTAINER,
        "image": plan.image,
        "imagePullPolicy": plan.settings.image_pull_policy,
        "command": _command(plan),
        "env": _environment(plan),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": common.container_security(),
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},
        "volumeMounts": [{"name": "weights", "mountPath": common.WEIGHTS}, *common.scratch_mounts()],
    }


def _command(plan: Plan) -> list[str]:
    model = plan.spec.model
    endpoint = ["--endpoint", model.endpoint] if model.endpoint else []
    return [
        *("python", "-m", "deepseek_runtime.weights.download"),
        *("--source", model.source, "--revision", model.revision, *endpoint),
        *("--destination", f"{common.WEIGHTS}/{plan.weights.path}", "--termination-log", TERMINATION_LOG),
    ]


def _environment(plan: Plan) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = [*common.environment(common.CACHE_ENV)]
    if plan.spec.model.secret_name:
        reference = {"name": plan.spec.model.secret_name, "key": "HF_TOKEN"}
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return variables
