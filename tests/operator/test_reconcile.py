"""State in, state out: what one object makes of a cluster, step by step."""

import json

import pytest

from deepseek_operator import conditions

CORRUPT = json.dumps({"error": "SHA-256 differs from the hub's", "file": "model-00002-of-00002.safetensors"})


def test_first_pass_makes_claim_job_and_services_but_no_pod(cluster, settle, cpu_spec):
    cluster.deploy(cpu_spec)
    settle()
    assert cluster.names("PersistentVolumeClaim") == ["chat-weights"]
    assert cluster.names("Service") == ["chat", "chat-ranks"]
    assert len(cluster.names("Job")) == 1
    assert cluster.names("StatefulSet") == []
    assert cluster.condition("WeightsReady")["status"] == "False"


def test_every_condition_is_there_from_the_first_write(cluster, reconcile, cpu_spec):
    cluster.deploy(cpu_spec)
    reconcile()
    types = [condition["type"] for condition in cluster.status()["conditions"]]
    assert types == [*conditions.ALWAYS, "Reconciling"]


def test_verified_weights_start_the_group_and_ready_pods_make_it_ready(cluster, serving):
    serving()
    status = cluster.status()
    assert cluster.condition("Ready") | {"lastTransitionTime": ""} == {
        "type": "Ready",
        "status": "True",
        "reason": "Serving",
        "message": "every group serves and clients have an address",
        "lastTransitionTime": "",
        "observedGeneration": 1,
    }
    assert status["endpoint"] == "http://10.0.0.9"
    assert status["model"] == {"name": "tutor", "revision": "c0ffee", "bytes": 5000000}
    assert status["groupsSummary"] == "1/1"
    assert [condition["type"] for condition in status["conditions"]][-1] == "Secured"


def test_nothing_is_written_when_nothing_changed(serving, reconcile, cluster):
    serving()
    before = len(cluster.writes), len(cluster.events)
    cluster.passes(3600)
    reconcile()
    assert (len(cluster.writes), len(cluster.events)) == before


def test_a_corrupt_shard_is_named_and_no_pod_starts(cluster, settle, cpu_spec):
    cluster.deploy(cpu_spec)
    settle()
    cluster.download_ends(code=1, message=CORRUPT)
    settle()
    judged = cluster.condition("WeightsReady")
    assert judged["reason"] == "VerificationFailed"
    assert "model-00002-of-00002.safetensors" in judged["message"]
    assert cluster.condition("Ready")["reason"] == "VerificationFailed"
    assert cluster.names("StatefulSet") == []


def test_a_failed_download_is_started_anew_after_a_minute_and_recovers(cluster, settle, cpu_spec):
    cluster.deploy(cpu_spec)
    settle()
    first = cluster.one("Job")["metadata"]["uid"]
    cluster.download_ends(code=1, message=CORRUPT, waiting=True)
    assert settle().look_again == pytest.approx(60)
    cluster.passes(61)
    settle()
    assert cluster.one("Job")["metadata"]["uid"] != first
    cluster.weights_arrive()
    settle()
    assert cluster.condition("WeightsReady")["status"] == "True"
    assert cluster.names("StatefulSet") == ["chat-g0"]


def test_what_cannot_fit_is_refused_with_numbers_before_anything_is_made(cluster, settle):
    cluster.deploy(
        {
            "model": {"source": "hf://deepseek-ai/DeepSeek-V3-0324"},
            "accelerator": {"product": "H100"},
            "nodes": 1,
        }
    )
    settle()
    fits = cluster.condition("Fits")
    assert fits["status"] == "False"
    assert "does not fit" in fits["message"]
    assert "Nearest: 2 nodes × 8" in fits["message"]
    assert cluster.condition("Stalled")["reason"] == "DoesNotFit"
    assert {kind for kind, _ in cluster.objects} == {"DeepSeekV3Deployment"}


def test_the_planner_chooses_the_fewest_nodes(cluster, settle):
    cluster.deploy({"model": {"source": "hf://deepseek-ai/DeepSeek-V3-0324"}, "accelerator": {"product": "H100"}})
    settle()
    cluster.weights_arrive()
    settle()
    assert cluster.status()["plan"]["nodes"] == 2
    assert cluster.objects["StatefulSet", "chat-g0"]["spec"]["replicas"] == 2
    assert cluster.one("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/2 nodes: Insufficient nvidia.com/gpu",
                    }
                ]
            },
            "Unschedulable",
            "Insufficient nvidia.com/gpu",
        ),
        (
            {
                "containerStatuses": [
                    {"name": "engine", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
                ]
            },
            "ImagePullBackOff",
            "no such image",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "engine",
                        "restartCount": 4,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {
                            "terminated": {"exitCode": 1, "reason": "Error", "message": "CUDA out of memory"}
                        },
                    }
                ]
            },
            "CrashLoopBackOff",
            "CUDA out of memory",
        ),
    ],
)
def test_status_tells_the_worst_pods_cause_and_clears_when_it_recovers(serving, settle, cluster, pod, reason, words):
    serving()
    healthy = cluster.objects["Pod", "chat-g0-1"]["status"]
    since = cluster.condition("EndpointReady")["lastTransitionTime"]
    cluster.passes(5)
    cluster.pod_becomes("chat-g0-1", pod)
    settle()
    ready = cluster.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert words in ready["message"]
    assert "chat-g0-1" in ready["message"]
    assert cluster.condition("EndpointReady")["lastTransitionTime"] == since
    cluster.pod_becomes("chat-g0-1", healthy)
    settle()
    assert cluster.condition("Ready")["status"] == "True"


def test_a_new_revision_replaces_one_group_at_a_time(serving, settle, cluster, cpu_spec):
    cpu_spec["replicas"] = 3
    serving()
    before = {name: cluster.objects["Pod", name]["metadata"]["uid"] for name in cluster.names("Pod")}
    cluster.deploy(cpu_spec | {"engine": {"image": "registry.example/runtime:2"}})
    for index in range(3):
        settle()
        sets = [cluster.objects["StatefulSet", f"chat-g{i}"] for i in range(3)]
        images = [s["spec"]["template"]["spec"]["containers"][0]["image"] for s in sets]
        assert images == ["registry.example/runtime:2"] * (index + 1) + ["registry.example/runtime:1"] * (2 - index)
        cluster.objects["StatefulSet", f"chat-g{index}"]["status"] = {"observedGeneration": 2}
        settle()
        assert cluster.status()["readyReplicas"] == 2
        assert cluster.status()["updatedReplicas"] == index + 1
        cluster.run_group(index)
    settle()
    assert cluster.condition("RolloutComplete")["status"] == "True"
    after = {name: cluster.objects["Pod", name]["metadata"]["uid"] for name in cluster.names("Pod") if name in before}
    assert all(after[name] != uid for name, uid in before.items() if "-g" in name and "weights" not in name)


def test_groups_that_do_not_serve_leave_a_broken_revision_at_once(serving, settle, cluster, cpu_spec):
    cpu_spec["replicas"] = 3
    serving()
    for name in cluster.names("Pod"):
        if "-g" in name:
            cluster.pod_becomes(name, {"containerStatuses": []})
    cluster.deploy(cpu_spec | {"engine": {"image": "registry.example/runtime:2"}})
    settle()
    sets = [cluster.objects["StatefulSet", f"chat-g{i}"] for i in range(3)]
    assert {s["spec"]["template"]["spec"]["containers"][0]["image"] for s in sets} == {"registry.example/runtime:2"}


def test_a_newer_operator_rolls_nothing(serving, settle, cluster, monkeypatch):
    serving()
    generation = cluster.objects["StatefulSet", "chat-g0"]["metadata"]["generation"]
    monkeypatch.setattr("deepseek_operator.render.statefulset.GRACE_SECONDS", 999)
    settle()
    assert cluster.objects["StatefulSet", "chat-g0"]["metadata"]["generation"] == generation


def test_what_somebody_else_changed_is_put_back(serving, settle, cluster):
    serving()
    cluster.objects["StatefulSet", "chat-g0"]["spec"]["replicas"] = 1
    cluster.objects["Service", "chat"]["spec"]["selector"] = {"app": "stolen"}
    settle()
    assert cluster.objects["StatefulSet", "chat-g0"]["spec"]["replicas"] == 2
    assert cluster.objects["Service", "chat"]["spec"]["selector"]["serving.dsv3.io/deployment"] == "chat"


@pytest.mark.parametrize("change", [{"replicas": 0}, {"suspend": True}])
def test_stopping_removes_the_pods_and_keeps_weights_and_address(serving, settle, cluster, cpu_spec, change):
    serving()
    cluster.deploy(cpu_spec | change)
    settle()
    assert cluster.names("StatefulSet") == []
    assert cluster.names("PersistentVolumeClaim") == ["chat-weights"]
    assert cluster.status()["endpoint"] == "http://10.0.0.9"
    assert cluster.condition("WeightsReady")["status"] == "True"
    assert cluster.condition("GroupsReady")["reason"] == ("Suspended" if "suspend" in change else "ScaledToZero")
    assert "Reconciling" not in [condition["type"] for condition in cluster.status()["conditions"]]


def test_a_dying_object_gets_no_write(serving, reconcile, cluster):
    serving()
    cluster.objects["DeepSeekV3Deployment", "chat"]["metadata"]["deletionTimestamp"] = "2026-11-25T12:00:00Z"
    cluster.remove("StatefulSet", "chat-g0")
    before = len(cluster.writes)
    reconcile()
    assert len(cluster.writes) == before


@pytest.mark.parametrize(("policy", "left"), [("Retain", ["chat-weights"]), ("Delete", [])])
def test_deletion_needs_no_operator_and_keeps_the_claim_unless_told(serving, cluster, cpu_spec, policy, left):
    cpu_spec["weights"] = {"deletionPolicy": policy}
    serving()
    cluster.remove("DeepSeekV3Deployment", "chat")
    assert cluster.names("PersistentVolumeClaim") == left
    rest = {kind for kind, _ in cluster.objects} - {"PersistentVolumeClaim"}
    assert rest == set()


def test_a_second_object_of_the_same_name_takes_the_kept_claim_as_it_is(serving, settle, cluster, cpu_spec):
    serving()
    cluster.remove("DeepSeekV3Deployment", "chat")
    kept = cluster.one("PersistentVolumeClaim")
    kept["spec"] = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "50Gi"}}}
    cluster.deploy(cpu_spec)
    settle()
    claim = cluster.one("PersistentVolumeClaim")
    assert claim["metadata"]["uid"] == kept["metadata"]["uid"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"


def test_an_operator_killed_at_any_write_completes_and_makes_nothing_twice(cluster, settle, cpu_spec, monkeypatch):
    """Cut the first pass after its n-th write, for every n, and start again."""
    monkeypatch.setattr("deepseek_operator.reconcile.Reconciler._write_status", _nothing)
    for limit in range(1, 6):
        cluster.objects.clear()
        cluster.writes.clear()
        cluster.deploy(cpu_spec)
        cluster.reject = lambda manifest, n=limit: "cut" if len(cluster.writes) >= n else None
        settle()
        cluster.reject = lambda manifest: None
        settle()
        applied = [target for verb, target in cluster.writes if verb == "apply"]
        assert len(applied) == len(set(applied)) == 5


async def _nothing(*_):
    """Stand in for the write of the status."""


def test_children_of_a_former_object_are_neither_adopted_nor_counted(serving, reconcile, cluster, cpu_spec):
    serving()
    former = cluster.objects.pop(("DeepSeekV3Deployment", "chat"))
    cluster.deploy(cpu_spec)
    assert cluster.objects["DeepSeekV3Deployment", "chat"]["metadata"]["uid"] != former["metadata"]["uid"]
    outcome = reconcile()
    owners = cluster.objects["StatefulSet", "chat-g0"]["metadata"]["ownerReferences"]
    assert owners[0]["uid"] == former["metadata"]["uid"]
    assert outcome.look_again == 2
    assert cluster.status()["readyReplicas"] == 0


def test_a_name_that_a_stranger_holds_is_left_alone_and_told(cluster, settle, cpu_spec):
    stranger = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "chat", "namespace": "ai"},
        "spec": {"x": 1},
    }
    cluster.put(stranger)
    cluster.deploy(cpu_spec)
    settle()
    assert cluster.objects["Service", "chat"]["spec"] == {"x": 1}
    assert cluster.condition("SpecValid")["reason"] == "NameTaken"
    assert "Service chat exists" in cluster.condition("Ready")["message"]


def test_an_overlay_that_the_api_server_refuses_becomes_a_condition(serving, settle, cluster, cpu_spec):
    cluster.reject = lambda manifest: (
        "spec.template.spec.containers[0].image: Required value" if manifest["kind"] == "StatefulSet" else None
    )
    cluster.deploy(cpu_spec)
    settle()
    cluster.weights_arrive()
    settle()
    assert cluster.condition("SpecValid")["reason"] == "Rejected"
    assert "Required value" in cluster.condition("Ready")["message"]
    assert cluster.condition("Stalled")["status"] == "True"


def test_a_given_claim_is_awaited_and_never_made(cluster, settle):
    cluster.deploy({"model": {"source": "pvc://shared/models/tutor"}, "accelerator": {"vendor": "cpu"}})
    settle()
    assert cluster.condition("WeightsReady")["reason"] == "ClaimNotFound"
    assert cluster.names("Job") == []
    metadata = {"name": "shared", "namespace": "ai"}
    spec = {"accessModes": ["ReadOnlyMany"]}
    cluster.put({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    settle()
    container = cluster.one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    assert "--model=/weights/models/tutor" in container["command"][2]


def test_two_groups_do_not_start_on_a_claim_for_one_node(serving, settle, cluster, cpu_spec):
    cpu_spec["nodes"] = 1
    serving()
    assert cluster.one("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]
    cluster.deploy(cpu_spec | {"replicas": 2})
    settle()
    judged = cluster.condition("WeightsReady")
    assert judged["reason"] == "ClaimNotShareable"
    assert "1 nodes × 2 replicas" in judged["message"]
    assert cluster.names("StatefulSet") == ["chat-g0"]


def test_commit_and_size_stay_known_when_the_jobs_pod_is_gone(serving, settle, cluster):
    serving()
    cluster.remove("Pod", next(name for name in cluster.names("Pod") if "weights" in name))
    settle()
    assert cluster.status()["model"]["revision"] == "c0ffee"


def test_changes_of_conditions_are_told_once_as_events(serving, cluster):
    serving()
    told = [(event["type"], event["reason"]) for event in cluster.events]
    assert told.count(("Normal", "Serving")) == 1
    assert told.count(("Normal", "Verified")) == 1
    assert all(len(event["message"]) <= 1000 for event in cluster.events)


def test_scaling_down_removes_the_last_groups_only(serving, settle, cluster, cpu_spec):
    cpu_spec["replicas"] = 3
    serving()
    uid = cluster.objects["Pod", "chat-g0-0"]["metadata"]["uid"]
    cluster.deploy(cpu_spec | {"replicas": 1})
    settle()
    assert cluster.names("StatefulSet") == ["chat-g0"]
    assert cluster.objects["Pod", "chat-g0-0"]["metadata"]["uid"] == uid


def test_a_refused_object_holds_up_neither_the_others_nor_the_truth_about_the_pods(serving, settle, cluster, cpu_spec):
    serving()
    cluster.reject = lambda manifest: "storage: may not shrink" if manifest["kind"] == "PersistentVolumeClaim" else None
    cluster.deploy(cpu_spec | {"replicas": 2, "weights": {"storage": {"size": "1Mi"}}})
    cluster.pod_becomes("chat-g0-1", {"containerStatuses": []})
    settle()
    assert cluster.condition("SpecValid")["message"] == "PersistentVolumeClaim chat-weights: storage: may not shrink"
    assert cluster.condition("GroupsReady")["status"] == "False"
    assert cluster.names("StatefulSet") == ["chat-g0", "chat-g1"]
