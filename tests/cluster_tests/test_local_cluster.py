"""The local cluster does what the project's own tests take for granted of any Kubernetes."""

import json
import subprocess
import sys
from typing import Any

import pytest

from cluster_access import LOCAL_CLUSTER, Cluster
from local_cluster.layout import BUSYBOX_IMAGE, Layout

pytestmark = pytest.mark.cluster

PEERS = f"""
apiVersion: v1
kind: Service
metadata: {{name: peer}}
spec: {{clusterIP: None, publishNotReadyAddresses: true, selector: {{app: peer}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: front}}
spec: {{type: LoadBalancer, selector: {{app: peer}}, ports: [{{port: 80, targetPort: 5000}}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: shared}}
spec: {{accessModes: [ReadWriteMany], resources: {{requests: {{storage: 1Gi}}}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: peer}}
spec:
  serviceName: peer
  replicas: 2
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: peer}}}}
  template:
    metadata: {{labels: {{app: peer}}}}
    spec:
      terminationGracePeriodSeconds: 0
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {{topologyKey: kubernetes.io/hostname, labelSelector: {{matchLabels: {{app: peer}}}}}}
      containers:
      - name: web
        image: {BUSYBOX_IMAGE}
        command: [sh, -c, "hostname > /tmp/index.html; exec httpd -f -v -p 5000 -h /tmp"]
        readinessProbe: {{httpGet: {{path: /index.html, port: 5000}}, periodSeconds: 1}}
        volumeMounts: [{{name: shared, mountPath: /shared}}]
      volumes: [{{name: shared, persistentVolumeClaim: {{claimName: shared}}}}]
"""

COUNTERS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: counters.clustertests.dsv3.io}
spec:
  group: clustertests.dsv3.io
  scope: Namespaced
  names: {plural: counters, singular: counter, kind: Counter}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          count:
            type: integer
            x-kubernetes-validations: [{rule: self % 2 == 0, message: counts must be even}]
"""

# A Service's first rules may be a moment later than its pods' readiness: one retry loop, bounded.
FETCH = """
import sys, time, urllib.request
for attempt in range(50):
    try:
        sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=3).read().decode())
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("no answer")
"""


@pytest.fixture(scope="module")
def peers(local_cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    """Two Ready pods that must be on two nodes, with a claim, a headless and a LoadBalancer Service."""
    local_cluster.kubectl("-n", namespace, "apply", "-f", "-", input=PEERS)
    local_cluster.kubectl("-n", namespace, "rollout", "status", "statefulset/peer", "--timeout=60s")
    found = local_cluster.kubectl("-n", namespace, "get", "pods", "-l", "app=peer", "-o", "json")
    pods: list[dict[str, Any]] = json.loads(found.stdout)["items"]
    return pods


def in_pod(cluster: Cluster, namespace: str, pod: str, *command: str) -> str:
    return cluster.kubectl("-n", namespace, "exec", pod, "--", *command).stdout.strip()


def test_two_nodes_are_ready(local_cluster: Cluster) -> None:
    local_cluster.kubectl("wait", "--for=condition=Ready", "node/node1", "node/node2", "--timeout=20s")


def test_up_again_changes_nothing(local_cluster: Cluster) -> None:
    record = Layout.of_user().run / "cluster.json"
    before = record.read_text()
    again = subprocess.run([sys.executable, LOCAL_CLUSTER, "up"], capture_output=True, text=True, check=True)
    assert "up already" in again.stdout
    assert record.read_text() == before


def test_the_kubeconfig_works_outside_of_the_clusters_network(local_cluster: Cluster) -> None:
    printed = subprocess.run([sys.executable, LOCAL_CLUSTER, "kubeconfig"], capture_output=True, text=True, check=True)
    kubectl = Layout.of_user().bin / "kubectl"
    command = [str(kubectl), "--kubeconfig", printed.stdout.strip(), "get", "nodes", "-o", "name"]
    nodes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert nodes.split() == ["node/node1", "node/node2"]


def test_exec_hands_the_exit_code_on(local_cluster: Cluster) -> None:
    assert local_cluster.run_in_network(["sh", "-c", "exit 7"]).returncode == 7


def test_anti_affinity_puts_the_pods_on_two_nodes(peers: list[dict[str, Any]]) -> None:
    assert {pod["spec"]["nodeName"] for pod in peers} == {"node1", "node2"}


@pytest.mark.parametrize(("asking", "answering"), [("peer-0", "peer-1"), ("peer-1", "peer-0")])
@pytest.mark.usefixtures("peers")
def test_a_pod_reaches_its_peer_on_the_other_node_by_name(
    local_cluster: Cluster, namespace: str, asking: str, answering: str
) -> None:
    address = f"http://{answering}.peer.{namespace}.svc.cluster.local:5000"
    assert in_pod(local_cluster, namespace, asking, "wget", "-q", "-O-", address) == answering


@pytest.mark.usefixtures("peers")
def test_a_dynamic_volume_is_shared_by_two_nodes(local_cluster: Cluster, namespace: str) -> None:
    in_pod(local_cluster, namespace, "peer-0", "sh", "-c", "echo kept > /shared/file")
    assert in_pod(local_cluster, namespace, "peer-1", "cat", "/shared/file") == "kept"


@pytest.mark.usefixtures("peers")
def test_a_load_balancer_gets_an_address_that_answers(local_cluster: Cluster, namespace: str) -> None:
    path = "{.status.loadBalancer.ingress[0].ip}"
    wait = ["wait", f"--for=jsonpath={path}", "service/front", "--timeout=20s"]
    local_cluster.kubectl("-n", namespace, *wait)
    address = local_cluster.kubectl("-n", namespace, "get", "service", "front", "-o", f"jsonpath={path}").stdout
    answer = local_cluster.run_in_network([sys.executable, "-c", FETCH, f"http://{address}/"])
    assert answer.stdout.strip() in {"peer-0", "peer-1"}, answer.stderr


@pytest.mark.usefixtures("peers")
def test_logs_show_what_a_pod_wrote(local_cluster: Cluster, namespace: str) -> None:
    in_pod(local_cluster, namespace, "peer-0", "wget", "-q", "-O-", "http://127.0.0.1:5000/index.html")
    assert "response:200" in local_cluster.kubectl("-n", namespace, "logs", "peer-0").stdout


def test_a_rule_in_a_crd_refuses_with_its_sentence(local_cluster: Cluster, namespace: str) -> None:
    local_cluster.kubectl("apply", "-f", "-", input=COUNTERS)
    try:
        crd = "crd/counters.clustertests.dsv3.io"
        local_cluster.kubectl("wait", "--for=condition=Established", crd, "--timeout=20s")
        odd = "{apiVersion: clustertests.dsv3.io/v1, kind: Counter, metadata: {name: odd}, count: 3}"
        refused = local_cluster.kubectl("-n", namespace, "create", "-f", "-", input=odd, check=False)
        assert refused.returncode != 0
        assert "counts must be even" in refused.stderr
    finally:
        local_cluster.kubectl("delete", "-f", "-", "--wait=false", input=COUNTERS)
