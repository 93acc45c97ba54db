"""The local cluster's pure parts, and its sentences for what a machine may lack; nothing here needs a cluster."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster_access import LOCAL_CLUSTER
from local_cluster import addons, host, oci, programs
from local_cluster.errors import ClusterError
from local_cluster.images.cpu_torch import Symbol, stub_source
from local_cluster.layout import Layout

CLASSES = {"standard": {"metadata": {"name": "standard"}, "volumeBindingMode": "WaitForFirstConsumer"}}


def service(name: str, kind: str, address: str | None = None) -> dict[str, Any]:
    status = {"loadBalancer": {"ingress": [{"ip": address}]}} if address else {"loadBalancer": {}}
    return {"metadata": {"namespace": "n", "name": name}, "spec": {"type": kind}, "status": status}


def claim(uid: str, *, scheduled: bool = True, storage_class: str = "standard") -> dict[str, Any]:
    annotations = {"volume.kubernetes.io/selected-node": "node1"} if scheduled else {}
    meta = {"namespace": "n", "name": uid, "uid": uid, "annotations": annotations}
    spec = {
        "storageClassName": storage_class,
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}}


def test_a_balancer_gets_the_first_address_that_is_free() -> None:
    services = [service("a", "LoadBalancer", "10.254.1.1"), service("b", "LoadBalancer"), service("c", "ClusterIP")]
    assert addons.missing_addresses(services) == {"/api/v1/namespaces/n/services/b": "10.254.1.2"}


def test_a_balancer_of_another_class_is_left_alone() -> None:
    other = service("a", "LoadBalancer")
    other["spec"]["loadBalancerClass"] = "example.com/other"
    assert addons.missing_addresses([other]) == {}


def test_only_scheduled_claims_of_our_class_without_a_volume_are_served() -> None:
    claims = [claim("new"), claim("waiting", scheduled=False), claim("foreign", storage_class="x"), claim("made")]
    assert addons.claims_to_serve(claims, CLASSES, {"pvc-made"}) == [claims[0]]


def test_a_volume_holds_what_its_claim_asked_for(tmp_path: Path) -> None:
    volume = addons.volume_for(claim("u"), CLASSES["standard"], tmp_path)
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volume["spec"]["capacity"] == {"storage": "1Gi"}
    assert volume["spec"]["claimRef"]["uid"] == "u"


@pytest.mark.parametrize(
    ("policy", "phase", "gone"), [("Delete", "Released", 1), ("Retain", "Released", 0), ("Delete", "Bound", 0)]
)
def test_a_released_volume_goes_as_its_policy_says(policy: str, phase: str, gone: int) -> None:
    spec = {"storageClassName": "standard", "persistentVolumeReclaimPolicy": policy}
    volume = {"metadata": {"name": "v"}, "spec": spec, "status": {"phase": phase}}
    assert len(addons.volumes_to_delete([volume], CLASSES)) == gone


def test_equal_folders_give_equal_layers(tmp_path: Path) -> None:
    library = oci.Library(tmp_path / "library")
    layers = []
    for name, time in (("first", 1), ("second", 2)):
        root = tmp_path / name
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "tool").write_text("#!/bin/sh\n")
        (root / "bin" / "link").symlink_to("tool")
        os.utime(root / "bin" / "tool", (time, time))
        layers.append(library.add_layer(root))
    assert layers[0] == layers[1]


def test_an_image_is_found_again_until_one_of_its_blobs_is_lost(tmp_path: Path) -> None:
    library = oci.Library(tmp_path / "library")
    (tmp_path / "root").mkdir()
    layer = library.add_layer(tmp_path / "root")
    image = library.add_image("example/image:1", [layer], {"User": "65532"})
    assert library.find("example/image:1") == image
    library.path(layer).unlink()
    assert library.find("example/image:1") is None


def test_an_archive_tells_the_digest_of_its_image(tmp_path: Path) -> None:
    library = oci.Library(tmp_path / "library")
    (tmp_path / "root").mkdir()
    image = library.add_image("example/image:1", [library.add_layer(tmp_path / "root")], {})
    (tmp_path / "image.tar").write_bytes(library.archive(image))
    assert oci.archive_images(tmp_path / "image.tar") == {"example/image:1": image.manifest.digest}


def test_pruning_keeps_what_an_image_uses(tmp_path: Path) -> None:
    library = oci.Library(tmp_path / "library")
    (tmp_path / "root").mkdir()
    image = library.add_image("example/image:1", [library.add_layer(tmp_path / "root")], {})
    (tmp_path / "root" / "file").write_text("x")
    unused = library.add_layer(tmp_path / "root")
    library.prune()
    assert not library.path(unused).exists()
    assert library.find("example/image:1") == image


def test_a_stub_answers_that_there_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "stub.c").write_text(stub_source([Symbol("cudaGetDeviceCount", "", "U")]))
    library = tmp_path / "stub.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "stub.c", "-lstdc++"], check=True)
    count = ctypes.c_int(9)
    assert ctypes.CDLL(str(library)).cudaGetDeviceCount(ctypes.byref(count)) == 100
    assert count.value == 0


def test_a_changed_source_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "etcd").mkdir()
    (tmp_path / "etcd" / "go.mod").write_text("module one\n")
    before = programs.fingerprint(programs.ETCD, tmp_path)
    (tmp_path / "etcd" / "go.mod").write_text("module two\n")
    assert programs.fingerprint(programs.ETCD, tmp_path) != before


def test_too_little_disk_is_told_in_gigabytes(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"needs 1000000 GB free under .*, and there are [\d.]+ GB"):
        host.require_disk(tmp_path / "not" / "yet", 1e6, "A test")


def test_without_go_the_sentence_says_which_go_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find", lambda program: None)
    with pytest.raises(ClusterError, match=r"needs Go 1\.25 or newer: install it"):
        host.require_go()


def test_a_go_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go1.19.8\n")
    go.chmod(0o755)
    monkeypatch.setattr(host, "find", lambda program: str(go))
    with pytest.raises(ClusterError, match=r"needs Go 1\.25 or newer, and .*/go is go1\.19\.8"):
        host.require_go()


def test_packages_are_missing_by_the_file_that_they_bring() -> None:
    assert host.missing_packages({"there": "sh", "gone": "/no/such/file"}) == ["gone"]


def test_without_a_cluster_a_command_says_how_to_get_one(tmp_path: Path) -> None:
    done = _cluster("kubeconfig", cache=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "No local cluster is up: start it with tests/cluster/cluster up.\n"


def test_an_unknown_program_is_named_with_those_that_exist(tmp_path: Path) -> None:
    done = _cluster("build", "nonsense", cache=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("No such program: nonsense; there are kubernetes, etcd, coredns, helm")


def test_a_user_other_than_root_is_told_to_be_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(ClusterError, match="run this as root"):
        host.require_root()


def test_the_cache_follows_the_users_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Layout.of_user().cache == tmp_path / "deepseek-v3-operator"


def _cluster(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, str(LOCAL_CLUSTER), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
