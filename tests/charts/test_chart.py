"""The chart installs what `manifests/base` installs, refuses unknown values, and its options do their work."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster.layout import Layout

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts/deepseek-v3-operator"
Objects = dict[tuple[str, str], dict[str, Any]]

pytestmark = pytest.mark.cluster


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _program(name: str, *build: str) -> str:
    """A program from PATH, or the local cluster's own, built if need be."""
    if found := shutil.which(name):
        return found
    built = Layout.of_user().bin / name
    if not built.exists():
        subprocess.run([REPOSITORY / "tests/cluster/cluster", "build", *build], check=True)
    return str(built)


@pytest.fixture(scope="module")
def helm() -> str:
    return _program("helm", "helm")


@pytest.fixture(scope="module")
def kubectl() -> str:
    return _program("kubectl")


def _template(helm: str, *options: str) -> subprocess.CompletedProcess[str]:
    return _run(
        helm, "template", "dsv3-operator", str(CHART), "--namespace=dsv3-system", "--kube-version=1.34.0", *options
    )


def _objects(done: subprocess.CompletedProcess[str]) -> Objects:
    assert done.returncode == 0, done.stderr
    found = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in found}


def _plain(manifest: dict[str, Any]) -> dict[str, Any]:
    """The object without what Helm adds, and with variables that only repeat a default left out."""
    labels = {
        key: value
        for key, value in manifest["metadata"].get("labels", {}).items()
        if key not in ("helm.sh/chart", "app.kubernetes.io/managed-by")
    }
    annotations = {
        key: value
        for key, value in manifest["metadata"].get("annotations", {}).items()
        if not key.startswith("helm.sh/")
    }
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in ("labels", "annotations")}
    metadata |= ({"labels": labels} if labels else {}) | ({"annotations": annotations} if annotations else {})
    return {**manifest, "metadata": metadata}


def _settings(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the operator reads from the environment that a Deployment gives it; takes the variables off the object."""
    from deepseek_operator.settings import Settings

    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    with monkeypatch.context() as context:
        for variable in container.pop("env"):
            context.setenv(variable["name"], variable["value"])
        return Settings()


def test_the_chart_installs_what_the_manifests_install(
    helm: str, kubectl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart = _objects(_template(helm))
    base = _objects(_run(kubectl, "kustomize", str(REPOSITORY / "manifests/base")))
    del base["Namespace", "dsv3-system"]
    deployment = "Deployment", "dsv3-operator"
    assert _settings(chart[deployment], monkeypatch) == _settings(base[deployment], monkeypatch)
    assert {key: _plain(manifest) for key, manifest in chart.items()} == {
        key: _plain(manifest) for key, manifest in base.items()
    }


def test_the_definition_survives_the_chart(helm: str) -> None:
    crd = _objects(_template(helm))["CustomResourceDefinition", "deepseekv3deployments.serving.dsv3.io"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    without = _objects(_template(helm, "--set=crds.install=false"))
    assert "CustomResourceDefinition" not in {kind for kind, _ in without}


@pytest.mark.parametrize(
    "option",
    [
        "--set=replicas=2",
        "--set=image.tag=latest",
        "--set=image.digest=abc",
        "--set=settings.logLevel=LOUD",
        "--set=settings.workers=0",
        "--set=crds.instal=false",
    ],
)
def test_a_value_that_does_not_exist_or_is_out_of_bounds_is_refused(helm: str, option: str) -> None:
    done = _template(helm, option)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr


def test_chosen_namespaces_get_the_rights_and_no_others(helm: str) -> None:
    found = [
        manifest
        for manifest in yaml.safe_load_all(_template(helm, "--set=namespaces={blue,green}").stdout)
        if manifest and manifest["kind"] in ("RoleBinding", "ClusterRoleBinding")
    ]
    assert [(manifest["kind"], manifest["metadata"]["namespace"]) for manifest in found] == [
        ("RoleBinding", "blue"),
        ("RoleBinding", "green"),
    ]


def test_a_digest_wins_over_a_tag(helm: str) -> None:
    digest = "sha256:" + "0" * 64
    done = _template(helm, f"--set=image.digest={digest}", "--set=image.repository=r.example/operator")
    (container,) = _objects(done)["Deployment", "dsv3-operator"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"r.example/operator@{digest}"


def test_the_chart_passes_the_strict_linter(helm: str) -> None:
    done = _run(helm, "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


def test_chart_and_project_have_one_version(helm: str) -> None:
    from deepseek_operator import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert all(image.endswith(f":{__version__}") for image in values["runtimeImages"].values())
