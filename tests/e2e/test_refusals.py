"""Wrong objects are refused by the API server itself, with a sentence, whether or not the operator runs."""

import json
from typing import Any

import pytest

from deployment import Deployment

pytestmark = pytest.mark.cluster


def _refusal(deployment: Deployment, manifest: dict[str, Any]) -> str:
    done = deployment.cluster.kubectl(
        "-n", deployment.namespace, "apply", "--dry-run=server", "-f", "-", input=json.dumps(manifest), check=False
    )
    assert done.returncode != 0, f"accepted: {done.stdout}"
    return done.stderr


@pytest.fixture
def candidate(tutor: Deployment) -> Deployment:
    return Deployment(tutor.cluster, tutor.namespace, "candidate")


def test_an_unknown_field_is_named(candidate: Deployment) -> None:
    assert 'unknown field "spec.replicsa"' in _refusal(candidate, candidate.manifest(replicsa=2))


def test_zero_nodes_are_refused(candidate: Deployment) -> None:
    refusal = _refusal(candidate, candidate.manifest(nodes=0))
    assert "spec.nodes" in refusal
    assert "1" in refusal


def test_a_name_of_41_characters_is_refused_with_the_limit(candidate: Deployment) -> None:
    long_name = Deployment(candidate.cluster, candidate.namespace, "n" * 41)
    assert "40 characters" in _refusal(long_name, long_name.manifest())


def test_an_unknown_source_scheme_is_refused_with_the_known_ones(candidate: Deployment) -> None:
    manifest = candidate.manifest()
    manifest["spec"]["model"]["source"] = "ftp://example.com/model"
    assert "hf://" in _refusal(candidate, manifest)
