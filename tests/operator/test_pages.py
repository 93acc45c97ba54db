"""The reference pages name every field, reason, setting, metric and label that there is."""

import re
from pathlib import Path

from deepseek_operator import conditions
from deepseek_operator.api import crd
from deepseek_operator.metrics import Metrics
from deepseek_operator.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
SOURCES = sorted((REPOSITORY / "operator/deepseek_operator").rglob("*.py"))


def leaves(schema, path=""):
    """Names of all fields that are not themselves groups of fields."""
    if not schema.get("properties"):
        return [path]
    return [leaf for name, sub in schema["properties"].items() for leaf in leaves(sub, f"{path}.{name}".strip("."))]


def test_every_field_of_the_spec_is_in_the_table():
    spec = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    documented = set(re.findall(r"^\| `([\w.]+)` \|", (DOCS / "custom-resource.md").read_text(), re.MULTILINE))
    assert set(leaves(spec)) <= documented


def test_every_setting_is_in_the_table():
    page = (DOCS / "operator.md").read_text()
    assert all(f"`DSV3_{name.upper()}`" in page for name in Settings.model_fields)


def test_every_metric_is_in_the_table():
    page = (DOCS / "operator.md").read_text()
    names = {metric.name for metric in Metrics().registry.collect()}
    assert all(name in page for name in names)


def test_every_condition_is_on_its_page():
    page = (DOCS / "conditions.md").read_text()
    assert all(f"| `{name}` |" in page for name in (*conditions.ALWAYS, conditions.RECONCILING, conditions.STALLED))


def test_every_label_of_ours_is_on_its_page():
    page = (DOCS / "labels.md").read_text()
    text = "\n".join(path.read_text() for path in SOURCES)
    ours = {f"serving.dsv3.io/{name}" for name in re.findall(r'f"\{api\.GROUP\}/(\w+)"', text)}
    assert len(ours) >= 5
    assert all(f"`{label}`" in page for label in ours)
