"""What breaks comes back without a person: a rank, a pod, the operator."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import stack
from asking import ask
from cluster_access import Cluster
from deployment import Deployment, Object
from tutor_training.problems import final_answer, held_out_problems

pytestmark = pytest.mark.cluster

DEADLINE_S = 60.0
_KILL_RANK = "import os, signal, pathlib\n" + (
    "for p in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
    "    words = p.read_bytes().split(b'\\0')\n"
    "    if b'deepseek_runtime.serve' in words and b'torchrun' not in b' '.join(words[:3]) "
    "and 'RANK=' in (p.parent / 'environ').read_text(errors='replace'):\n"
    "        os.kill(int(p.parent.name), signal.SIGKILL)\n"
    "        print('killed', p.parent.name)\n"
)


def _recovers_while_asked(deployment: Deployment, disturb: list[str], what: str) -> None:
    problems = held_out_problems(24, seed=23)
    # Ready can be a moment ahead of kube-proxy: a connection opened before its rules are there hangs to its deadline.
    deployment.wait(lambda: _answers(deployment), f"answered before {what}", 120)
    before, restarts = deployment.pods(), _restarts(deployment)
    with ThreadPoolExecutor(1) as pool:
        questions = [problem.question for problem in problems]
        asking = pool.submit(
            ask, deployment.cluster, deployment.endpoint(), questions, concurrency=4, timeout=DEADLINE_S
        )
        deployment.kubectl(*disturb)
        replies = asking.result(timeout=10 * DEADLINE_S)
    assert [reply for reply in replies if "Timeout" in (reply.error or "")] == [], "a request hung past its deadline"
    answered = [(p, r.text) for p, r in zip(problems, replies, strict=True) if r.text is not None]
    assert sum(final_answer(text) != problem.result for problem, text in answered) <= 1, answered
    deployment.wait(lambda: _was_disturbed(deployment, before, restarts), f"noticed {what}", 60)
    deployment.wait(lambda: _answers(deployment), f"answered again after {what}", 120)
    deployment.wait_ready()


def _answers(deployment: Deployment) -> bool:
    (reply,) = ask(deployment.cluster, deployment.endpoint(), ["What is 792 minus 297?"], timeout=DEADLINE_S / 4)
    return final_answer(reply.text or "") == 495


def _restarts(deployment: Deployment) -> int:
    statuses = [s for p in deployment.pods().values() for s in p["status"].get("containerStatuses", [])]
    return sum(status["restartCount"] for status in statuses)


def _was_disturbed(deployment: Deployment, before: dict[str, Object], restarts: int) -> bool:
    now = deployment.pods()
    uids = {name: pod["metadata"]["uid"] for name, pod in now.items()}
    return uids != {n: p["metadata"]["uid"] for n, p in before.items()} or _restarts(deployment) > restarts


@pytest.mark.parametrize("rank", [0, 1])
def test_a_deleted_pod_of_either_rank_comes_back_and_the_group_serves(tutor: Deployment, rank: int) -> None:
    _recovers_while_asked(tutor, ["delete", "pod", f"tutor-g0-{rank}", "--wait=false"], f"the deletion of rank {rank}")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_either_rank_comes_back_and_the_group_serves(tutor: Deployment, rank: int) -> None:
    command = ["exec", f"tutor-g0-{rank}", "--", "python", "-c", _KILL_RANK]
    _recovers_while_asked(tutor, command, f"the kill of rank {rank}")


def test_an_operator_killed_while_it_creates_completes_and_makes_nothing_twice(tutor: Deployment) -> None:
    deployment = Deployment(tutor.cluster, tutor.namespace, "halfway")
    deployment.apply(nodes=1)
    deployment.wait(lambda: bool(deployment.children("jobs")), "got a download Job", 60)
    jobs = {job["metadata"]["uid"] for job in deployment.children("jobs")}
    deployment.cluster.kubectl(
        "-n", stack.OPERATOR_NAMESPACE, "delete", "pod", "--all", "--grace-period=0", "--force", "--wait=false"
    )
    deployment.wait_ready()

    assert {job["metadata"]["uid"] for job in deployment.children("jobs")} == jobs
    assert len(deployment.children("statefulsets")) == 1
    assert len(deployment.children("persistentvolumeclaims")) == 1
    deployment.delete()


def test_nothing_is_written_when_nothing_changed(tutor: Deployment) -> None:
    tutor.wait_ready()
    kinds = ("dsv3", "statefulsets", "services", "jobs", "persistentvolumeclaims")

    def versions() -> dict[str, str]:
        found = [o for kind in kinds for o in tutor.children(kind)] + [tutor.get() or {}]
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in found}

    before = versions()
    tutor.cluster.kubectl("-n", stack.OPERATOR_NAMESPACE, "rollout", "restart", "deployment")
    tutor.cluster.kubectl("-n", stack.OPERATOR_NAMESPACE, "rollout", "status", "deployment", "--timeout=120s")
    objects = len(tutor.cluster.kubectl("get", "dsv3", "--all-namespaces", "-o", "name").stdout.split())
    tutor.wait(lambda: _passes(tutor.cluster) >= objects, "was looked at by the restarted operator", 60)
    assert versions() == before


def _passes(cluster: Cluster) -> float:
    """How many passes the running operator has made, by its own metrics; 0 while it does not answer."""
    pods = cluster.kubectl(
        "-n", stack.OPERATOR_NAMESPACE, "get", "pods", "-o", "name", "--field-selector=status.phase=Running"
    )
    path = f"/api/v1/namespaces/{stack.OPERATOR_NAMESPACE}/pods/{{}}:8081/proxy/metrics"
    texts = [
        cluster.kubectl("get", "--raw", path.format(pod.removeprefix("pod/")), check=False).stdout
        for pod in pods.stdout.split()
    ]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("dsv3_operator_reconciles_total")]
    return sum(float(line.split()[-1]) for line in lines)


def test_deletion_with_the_operator_stopped_leaves_the_claim_and_nothing_else(tutor: Deployment) -> None:
    deployment = Deployment(tutor.cluster, tutor.namespace, "orphan")
    deployment.apply(nodes=1)
    deployment.wait_ready()
    scale = ("-n", stack.OPERATOR_NAMESPACE, "scale", "deployment", "--all")
    tutor.cluster.kubectl(*scale, "--replicas=0")
    try:
        deployment.kubectl("delete", "dsv3", "orphan", "--timeout=60s")
        kinds = ("statefulsets", "services", "jobs", "pods")
        deployment.wait(lambda: not any(deployment.children(kind) for kind in kinds), "lost its children", 90)
        assert len(deployment.children("persistentvolumeclaims")) == 1
    finally:
        tutor.cluster.kubectl(*scale, "--replicas=1")
        tutor.cluster.kubectl("-n", stack.OPERATOR_NAMESPACE, "rollout", "status", "deployment", "--timeout=120s")
    deployment.delete()
