"""Samples are what the models accept, and the operator's rights are what the operator is seen doing."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from deepseek_operator import fit, plan
from deepseek_operator.app import operator_settings
from deepseek_operator.manifest import CHILDREN, DEPLOYMENT
from deepseek_operator.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = sorted(path for path in (REPOSITORY / "manifests/samples").glob("*.yaml") if path.stem != "kustomization")
BASE = [
    manifest
    for path in sorted((REPOSITORY / "manifests/base").glob("*.yaml"))
    if path.stem != "kustomization"
    for manifest in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_complete_and_none_is_known_not_to_fit(sample):
    manifest = yaml.safe_load(sample.read_text())
    manifest["metadata"] |= {"namespace": "default", "uid": "1"}
    made = plan.make(manifest, Settings())
    assert made.fit.verdict == ("Unknown" if made.spec.accelerator.vendor == "cpu" else "True"), made.fit.message


def test_every_sample_is_listed():
    listed = yaml.safe_load((REPOSITORY / "manifests/samples/kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == [path.name for path in SAMPLES]


def test_the_smallest_sample_has_at_most_15_lines():
    assert len((REPOSITORY / "manifests/samples/smallest.yaml").read_text().splitlines()) <= 15


@pytest.mark.parametrize("manifest", BASE, ids=lambda manifest: f"{manifest['kind']}-{manifest['metadata']['name']}")
def test_the_base_is_strictly_valid(manifest):
    kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_no_image_has_a_floating_tag():
    for path in (REPOSITORY / "manifests").rglob("*.yaml"):
        for image in re.findall(r"^\s*(?:image|value):\s*(\S+/\S+)$", path.read_text(), re.MULTILINE):
            assert re.search(r":(?!latest|main)[\w.-]+$", image), f"{path.name}: {image}"


def _granted() -> set[tuple[str, str]]:
    (role,) = [manifest for manifest in BASE if manifest["kind"] == "ClusterRole"]
    rules = role["rules"]
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def test_the_role_has_no_wildcard_and_no_secret():
    assert not [pair for pair in _granted() if "*" in pair or "secrets" in pair]


def test_the_role_grants_what_is_watched():
    watched = {(verb, kind.plural) for kind in (DEPLOYMENT, *CHILDREN) for verb in ("list", "watch")}
    assert watched <= _granted()
    assert not operator_settings().posting.enabled


def test_api_groups_of_the_role_are_those_of_the_kinds():
    (role,) = [manifest for manifest in BASE if manifest["kind"] == "ClusterRole"]
    groups = {resource.plural: resource.group for resource in (DEPLOYMENT, *CHILDREN)}
    for rule in role["rules"]:
        for resource in rule["resources"]:
            if resource in groups:
                assert rule["apiGroups"] == [groups[resource]], resource


def test_the_fit_is_computed_for_the_real_samples_with_their_own_numbers():
    verdicts = {}
    for sample in SAMPLES:
        spec = plan.parse(yaml.safe_load(sample.read_text()))
        if spec.accelerator.product:
            verdicts[sample.stem] = fit.judge(spec, spec.accelerator.per_node or 8).nodes
    assert verdicts == {"h100-16": 2, "h200-8": 1, "mi300x-8": 1, "smallest": 1}
