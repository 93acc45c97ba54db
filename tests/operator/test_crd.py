"""The generated definition: up to date, structural, and in agreement with the models about what is valid."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from deepseek_operator.api import crd
from deepseek_operator.api.v1alpha1 import Spec, Status

FILE = Path(__file__).resolve().parents[2] / "crds" / crd.FILE_NAME
SCHEMA = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SMALLEST = {"model": {"source": "hf://deepseek-ai/DeepSeek-V3"}}


def walk(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every schema below and including this one, with its path."""
    below = [walk(sub, f"{path}.{name}") for name, sub in schema.get("properties", {}).items()]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            below.append(walk(schema[key], f"{path}[]"))
    return [(path, schema), *(found for group in below for found in group)]


def test_the_committed_definition_is_the_generated_one():
    assert FILE.read_text() == crd.rendered(), "run `make crds`"


def test_the_schema_is_structural():
    for path, schema in walk(SCHEMA):
        assert "type" in schema, path
        assert not {"$ref", "anyOf", "title", "const", "$defs"} & schema.keys(), path
        assert not {"properties", "additionalProperties"} <= schema.keys(), path
        assert schema.get("default", 0) is not None, path


def test_every_field_of_the_spec_is_bounded():
    for path, schema in walk(SCHEMA["properties"]["spec"]):
        bound = {
            "string": {"enum", "maxLength"},
            "array": {"maxItems"},
            "integer": {"maximum"},
            "boolean": {"type"},
            "object": {"properties", "maxProperties", "x-kubernetes-preserve-unknown-fields"},
        }
        assert bound[schema["type"]] & schema.keys(), f"spec{path}"


def test_every_rule_has_a_sentence():
    rules = [rule for _, schema in walk(SCHEMA) for rule in schema.get("x-kubernetes-validations", [])]
    assert len(rules) >= 12
    assert all(len(rule["message"].split()) >= 4 for rule in rules)


def test_every_field_that_needs_words_has_them():
    bare = [path for path, schema in walk(SCHEMA["properties"]["spec"]) if "description" not in schema]
    allowed = {".engine.env[].name", ".engine.env[].value", ".service.loadBalancerClass"}
    assert {path for path in bare if not path.endswith("[]")} <= allowed


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"nodes": 0},
        {"nodes": 65},
        {"replicas": -1},
        {"replicas": 0},
        {"model": {}},
        {"model": {"source": ""}},
        {"model": {"source": "hf://a/b", "revision": "a b"}},
        {"model": {"source": "hf://a/b", "servedNames": []}},
        {"model": {"source": "hf://a/b", "endpoint": "ftp://x"}},
        {"accelerator": {"vendor": "tpu"}},
        {"accelerator": {"memory": "141GB"}},
        {"accelerator": {"memory": "141Gi", "perNode": 16}},
        {"accelerator": {"resourceName": "gpu"}},
        {"engine": {"env": [{"name": "1A"}]}},
        {"weights": {"storage": {"accessModes": ["ReadOnlyMany"]}}},
        {"service": {"port": 70000}},
        {"service": {"loadBalancerSourceRanges": ["10.0.0.0"]}},
        {"network": {"interface": "eth0"}},
        {"parallelism": {"attention": "data", "redundantExperts": 32}, "speculativeTokens": 3},
        {"parallelism": {"attention": "pipeline"}},
        {"parallelism": {"redundantExperts": -1}},
        {"speculativeTokens": 4},
        {"startup": {"timeoutSeconds": 1}},
        {"podTemplate": {"spec": {"anything": [1, {"goes": None}]}}},
        {"suspend": "yes"},
    ],
    ids=str,
)
def test_models_and_schema_agree(change):
    spec = SMALLEST | change
    by_schema = not list(Draft7Validator(SCHEMA["properties"]["spec"]).iter_errors(spec))
    try:
        Spec.model_validate(spec, strict=False)
        by_model = True
    except ValueError:
        by_model = False
    # Lax pydantic takes "yes" for true; the API server, which judges first, does not.
    assert by_schema == by_model or (by_model and change == {"suspend": "yes"})


def test_defaults_are_the_models_own():
    """The API server fills the same defaults as the models do, so that what is stored is what is computed with."""

    def filled(schema: dict[str, Any], value: Any) -> Any:
        if schema["type"] != "object" or "properties" not in schema:
            return value
        given = dict(value)
        for name, sub in schema["properties"].items():
            if name not in given and "default" in sub:
                given[name] = sub["default"]
            if name in given:
                given[name] = filled(sub, given[name])
        return given

    stored = filled(SCHEMA["properties"]["spec"], SMALLEST)
    dumped = Spec.model_validate(SMALLEST).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert stored == dumped


def test_the_file_is_what_kubernetes_calls_a_definition():
    manifest = yaml.safe_load(FILE.read_text())
    (version,) = manifest["spec"]["versions"]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns == ["Ready", "Reason", "Groups", "Model", "Accelerator", "Endpoint", "Age"]
    assert set(version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]) == {
        field.alias for field in Status.model_fields.values()
    }
