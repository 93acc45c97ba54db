"""`make demo`: from an empty machine to a right answer, on a real Kubernetes, one timed step after the other.

With KUBECONFIG set, that cluster is used and nothing is built; it must be able to pull the two images.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests/support")]

from display import Display

import stack
from cluster_access import Cluster, ClusterAccessError, cluster_in_use

NAMESPACE = "dsv3-demo"
NAME = "tutor"
QUESTION = "What is 792 minus 297?"
RIGHT_ANSWER = "495"
_PATIENCE_S = 600


def main() -> int:
    """Run all steps; 0 if the answer is right, 1 if it is wrong, 2 if a step could not be done."""
    display = Display()
    try:
        cluster = _cluster(display)
        return _serve_and_ask(cluster, display)
    except ClusterAccessError as error:
        display.failed(str(error))
        return 2
    except KeyboardInterrupt:
        display.failed("Stopped. Run `make demo` again to go on, or `make down` to end the cluster.")
        return 130


def _cluster(display: Display) -> Cluster:
    if not os.environ.get("KUBECONFIG"):
        display.together(
            {
                "Compile Kubernetes from its Go modules": [str(_tool()), "build"],
                "Build the operator's and the runtime's image": [str(_tool()), "images"],
            }
        )
    with display.step("Bring up the cluster"):
        cluster = cluster_in_use()
    display.show(cluster.kubectl("get", "nodes", "-o", "wide").stdout, columns=6)
    with display.step("Give the images to the nodes"):
        stack.load_images(cluster)
    return cluster


def _tool() -> Path:
    return REPOSITORY / "tests/cluster/cluster"


def _serve_and_ask(cluster: Cluster, display: Display) -> int:
    with display.step("Install the operator"):
        stack.install_operator(cluster)
    with display.step("Start a hub mirror that holds the tutor's weights"):
        stack.create_namespace(cluster, NAMESPACE)
        stack.install_hub(cluster, NAMESPACE)
    display.show(f"$ kubectl apply -f {stack.TUTOR_SAMPLE.relative_to(REPOSITORY)}\n{stack.TUTOR_SAMPLE.read_text()}")
    with display.step("Apply it: weights downloaded and verified, two pods joined"):
        cluster.kubectl("-n", NAMESPACE, "apply", "-f", str(stack.TUTOR_SAMPLE))
        endpoint = _wait_until_ready(cluster, display)
    display.show("$ kubectl get dsv3 -o wide\n" + cluster.kubectl("-n", NAMESPACE, "get", "dsv3", "-o", "wide").stdout)
    pods = cluster.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide", "-l", f"serving.dsv3.io/deployment={NAME}")
    display.show("$ kubectl get pods -o wide\n" + pods.stdout, columns=7)
    right = _ask(cluster, display, endpoint)
    display.show(_next_steps(cluster, endpoint))
    return 0 if right else 1


def _wait_until_ready(cluster: Cluster, display: Display) -> str:
    """The endpoint's URL, as soon as the object says Ready; meanwhile its own words are the progress display."""
    give_up = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up:
        status = json.loads(cluster.kubectl("-n", NAMESPACE, "get", "dsv3", NAME, "-o", "json").stdout).get(
            "status", {}
        )
        ready = _condition(status, "Ready")
        if ready.get("status") == "True":
            return str(status["endpoint"])
        display.progress(f"{ready.get('reason', 'Waiting')}: {ready.get('message', '')}")
        time.sleep(0.5)
    raise ClusterAccessError(
        f"{NAME} was not Ready after {_PATIENCE_S} s: {ready.get('message', 'no status')} "
        f"Look at it with: {_prefix(cluster)}kubectl -n {NAMESPACE} describe dsv3 {NAME}"
    )


def _condition(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == name), {})


def _ask(cluster: Cluster, display: Display, endpoint: str) -> bool:
    """Ask through the LoadBalancer with the official client; whether the answer is right."""
    display.show(f"$ python demo/ask.py {endpoint} '{QUESTION}'")
    started = time.monotonic()
    answer = display.stream(cluster.in_network([sys.executable, str(REPOSITORY / "demo/ask.py"), endpoint, QUESTION]))
    right = answer.rstrip().endswith(RIGHT_ANSWER)
    took = time.monotonic() - started
    display.done(f"Answered {'correctly' if right else 'WRONGLY'} through {endpoint}", took, good=right)
    return right


def _prefix(cluster: Cluster) -> str:
    return "tests/cluster/cluster exec -- " if cluster.is_local else ""


def _next_steps(cluster: Cluster, endpoint: str) -> str:
    run = _prefix(cluster)
    return f"""
What to try next:
  {run}.venv/bin/python demo/ask.py {endpoint} "请问1234减567等于多少?"
  {run}curl -s {endpoint}/v1/models
  {run}kubectl -n {NAMESPACE} describe dsv3 {NAME}
  {run}kubectl -n {NAMESPACE} delete pod {NAME}-g0-1        # the group forms again by itself
  {run}kubectl -n {NAMESPACE} scale dsv3 {NAME} --replicas=2
  make test                                               # everything, on this same Kubernetes
  make down                                               # end it; nothing stays but the cache
"""


if __name__ == "__main__":
    sys.exit(main())
