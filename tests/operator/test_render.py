"""Rendered objects: each kind beside its reviewed golden file, and strictly valid for the API server's schema.

`UPDATE_GOLDENS=1 pytest tests/operator/test_render.py` writes them anew; the diff is the review.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from deepseek_operator import names, plan
from deepseek_operator.render import claim, job, serviceaccount, services, statefulset
from deepseek_operator.render.text import rendered
from deepseek_runtime.settings import Settings

GOLDENS = Path(__file__).parent / "goldens"
SPECS = {
    "tutor": {
        "model": {"source": "hf://dsv3/tutor", "endpoint": "http://hub"},
        "accelerator": {"vendor": "cpu"},
        "nodes": 2,
    },
    "h100": {
        "model": {
            "source": "hf://deepseek-ai/DeepSeek-V3-0324",
            "revision": "v1",
            "secretName": "hub-token",
            "servedNames": ["deepseek-chat", "deepseek-v3"],
            "maxModelLen": 65536,
        },
        "accelerator": {"product": "H100"},
        "parallelism": {"attention": "data", "redundantExperts": 32},
        "speculativeTokens": 2,
        "engine": {"env": [{"name": "HOME", "value": "/elsewhere"}], "args": ["--dtype", "bfloat16", "$(quoted) it's"]},
        "weights": {
            "deletionPolicy": "Delete",
            "storage": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"]},
        },
        "service": {
            "port": 8080,
            "annotations": {"example.com/pool": "a"},
            "loadBalancerClass": "example.com/lb",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
        },
        "network": {"interface": "eth1"},
        "podTemplate": {
            "metadata": {"labels": {"team": "a", "serving.dsv3.io/role": "stolen"}},
            "spec": {
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "containers": [{"name": "engine", "resources": {"limits": {"rdma/ib": "8"}}}],
            },
        },
    },
    "mi300x": {
        "model": {"source": "pvc://models/deepseek/v3"},
        "accelerator": {"vendor": "amd", "product": "MI300X"},
        "startup": {"timeoutSeconds": 7200},
        "service": {"type": "ClusterIP"},
    },
}


class Readable(yaml.SafeDumper):
    """Scripts as blocks and no anchors, so that a diff of a golden reads like the change."""

    def ignore_aliases(self, data):
        return True


Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


@pytest.fixture
def made(settings):
    """Make the plan of one of the specs."""

    def make(name, **changes):
        metadata = {"name": "chat", "namespace": "ai", "uid": "11111111-2222"}
        return plan.make({"metadata": metadata, "spec": SPECS[name] | changes}, settings)

    return make


def objects(planned):
    """All objects of a plan, by the name of their golden file."""
    size = planned.fit.checkpoint_bytes
    found = {
        "serviceaccount": serviceaccount.service_account(plan=planned),
        "claim": claim.claim(plan=planned, live=None),
        "job": job.download_job(plan=planned),
        "service-ranks": services.ranks_service(plan=planned),
        "service-clients": services.client_service(plan=planned),
        "statefulset": statefulset.group_stateful_set(plan=planned, index=0, model_bytes=size),
    }
    return {name: manifest for name, manifest in found.items() if manifest is not None}


@pytest.mark.parametrize("name", SPECS)
def test_objects_equal_their_goldens(made, name):
    for kind, manifest in objects(made(name)).items():
        path = GOLDENS / f"{name}-{kind}.yaml"
        text = yaml.dump(manifest, Dumper=Readable, sort_keys=False, width=110)
        if os.environ.get("UPDATE_GOLDENS"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        again = f"{path.name} differs; to write it anew: UPDATE_GOLDENS=1 pytest tests/operator/test_render.py"
        assert yaml.safe_load(path.read_text()) == manifest, again


@pytest.mark.parametrize("name", SPECS)
def test_objects_are_strictly_valid(made, name):
    for manifest in objects(made(name)).values():
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_a_pod_lives_longer_than_its_last_call_and_its_drain(made):
    pod = objects(made("tutor"))["statefulset"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    last_call = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    torchrun = next(int(v["value"]) for v in container["env"] if v["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    drain = next(field.default for field in dataclasses.fields(Settings) if field.name == "drain_timeout")
    assert drain < torchrun < pod["terminationGracePeriodSeconds"] - last_call


def test_no_golden_is_left_over(made):
    expected = {f"{name}-{kind}.yaml" for name in SPECS for kind in objects(made(name))}
    assert {path.name for path in GOLDENS.iterdir()} == expected


def test_every_object_but_a_kept_claim_has_its_owner(made):
    for name in SPECS:
        for kind, manifest in objects(made(name)).items():
            owners = manifest["metadata"].get("ownerReferences", [])
            assert [owner["uid"] for owner in owners] == (
                [] if (name, kind) == ("tutor", "claim") else ["11111111-2222"]
            )


def test_nothing_of_the_users_labels_is_copied_and_ours_cannot_be_stolen(made):
    stateful_set = objects(made("h100"))["statefulset"]
    labels = stateful_set["spec"]["template"]["metadata"]["labels"]
    assert labels["team"] == "a"
    assert labels[names.ROLE] == names.ROLE_RANK
    assert stateful_set["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_kept_claim_carries_no_label_that_gitops_tools_prune_by(made):
    assert names.INSTANCE not in objects(made("tutor"))["claim"]["metadata"]["labels"]


def test_pods_meet_the_restricted_standard(made):
    for name in SPECS:
        for manifest in objects(made(name)).values():
            if "template" not in manifest.get("spec", {}):
                continue
            spec = manifest["spec"]["template"]["spec"]
            assert spec["automountServiceAccountToken"] is False
            assert spec["securityContext"]["runAsNonRoot"]
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in spec["containers"]:
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"]
                assert not security["allowPrivilegeEscalation"]
                assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_startup_window_grows_with_the_bytes_and_is_never_under_half_an_hour(made):
    assert statefulset.startup_seconds(made("tutor"), 7_000_000) == 1800
    assert statefulset.startup_seconds(made("h100"), 688_600_000_000) == 13772
    assert statefulset.startup_seconds(made("mi300x"), None) == 7200


def script_of(planned):
    """The launch script of the engine's container."""
    return objects(planned)["statefulset"]["spec"]["template"]["spec"]["containers"][0]["command"][2]


def test_the_layout_that_was_judged_is_the_one_that_runs(made):
    known = {"model": {"source": "hf://deepseek-ai/DeepSeek-V3-0324"}, "accelerator": {"product": "H200"}}
    assert "--attention=tensor" in script_of(made("tutor", **known))
    nine = {"parallelism": {"redundantExperts": 32}, "accelerator": {"product": "H200", "perNode": 9}, "nodes": 1}
    assert "--attention=data" in script_of(made("tutor", **known | nine))


def test_what_nobody_chose_is_left_to_the_runtime(made):
    script = script_of(made("tutor"))
    assert all(flag not in script for flag in ("--attention", "--redundant-experts", "--speculative-tokens"))
    assert "--speculative-tokens=0" in script_of(made("tutor", speculativeTokens=0))


@pytest.mark.parametrize("name", ["tutor", "mi300x"])
def test_every_cache_lies_where_a_pod_with_a_read_only_root_may_write(made, name):
    """Triton's launchers and compiled kernels among them: a user without a home has no other place."""
    template = objects(made(name))["statefulset"]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    empty = {volume["name"] for volume in template["volumes"] if "emptyDir" in volume}
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in empty}
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert {"/cache", "/tmp"} <= writable
    for variable in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert any(Path(environment[variable]).is_relative_to(folder) for folder in writable), variable


def test_a_template_value_that_is_missing_is_an_error():
    with pytest.raises(Exception, match="'per_node' is undefined"):
        rendered("launch.sh.j2", master="m", nodes=1, store_port=1, arguments=[])


def test_the_launch_script_waits_for_dns_then_becomes_torchrun_and_heeds_sigterm(made, tmp_path):
    """Run the script itself, with a torchrun that tells its arguments."""
    script = script_of(made("h100"))
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "POD_INDEX": "1", "POD_IP": "10.0.0.7"}
    local = script.replace("chat-g0-0.chat-ranks.ai.svc.cluster.local", "localhost")
    told = subprocess.run(["/bin/sh", "-c", local], env=environment, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [
        "--nnodes=2",
        "--nproc-per-node=8",
        "--node-rank=1",
        "--master-addr=localhost",
        "--master-port=29500",
        "--local-addr=10.0.0.7",
        "-m",
        "deepseek_runtime.serve",
        f"--model=/weights/{made('h100').weights.hash}",
        "--served-model-name=deepseek-chat",
        "--served-model-name=deepseek-v3",
        "--port=8000",
        "--health-port=8001",
        "--max-model-len=65536",
        "--attention=data",
        "--redundant-experts=32",
        "--speculative-tokens=2",
        "--dtype",
        "bfloat16",
        "$(quoted) it's",
    ]
    nowhere = script.replace("chat-g0-0.chat-ranks.ai.svc.cluster.local", "nowhere.invalid")
    waiting = subprocess.Popen(["/bin/sh", "-c", nowhere], env=environment, stderr=subprocess.PIPE, text=True)
    assert "waiting for nowhere.invalid" in waiting.stderr.readline()
    waiting.terminate()
    assert waiting.wait(timeout=10) == 143
    waiting.stderr.close()
