"""Small pure parts: quantities, names, hashes, overlays, comparison, conditions, back-off."""

import string
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from deepseek_operator import conditions, manifest, names, overlay, plan, quantity, workers
from deepseek_operator.api.v1alpha1 import MAX_NAME, MAX_REPLICAS, Spec
from deepseek_operator.conditions import Judgement

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
UNITS = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.decimals(min_value=0, max_value=10**6, places=2), st.sampled_from(UNITS))
def test_quantities_are_what_the_client_library_reads(number, unit):
    assert quantity.parse(f"{number}{unit}") == parse_quantity(f"{number}{unit}")


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1GB", "1 Gi", "1e3x"])
def test_what_is_no_quantity_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="for example 141Gi"):
        quantity.parse(text)


@given(st.integers(min_value=1, max_value=10**15))
def test_gibibytes_hold_the_bytes_with_less_than_one_to_spare(count):
    spare = quantity.parse(quantity.gibibytes(count)) - Decimal(count)
    assert 0 <= spare < quantity.GIB


@given(
    st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=MAX_NAME),
    st.integers(min_value=0, max_value=MAX_REPLICAS - 1),
    st.integers(min_value=0, max_value=63),
)
def test_no_derived_name_or_label_is_longer_than_63(name, index, rank):
    stateful_set = names.group(name, index)
    derived = [
        names.claim(name),
        names.ranks(name),
        names.job(name, "0123456789"),
        names.pod(name, index, rank),
        f"{stateful_set}-0123456789",  # the controller-revision-hash label of its pods
    ]
    assert max(map(len, derived)) <= 63


@given(JSON)
def test_a_hash_does_not_depend_on_the_order_of_keys(value):
    def reversed_keys(item):
        if isinstance(item, dict):
            return {key: reversed_keys(item[key]) for key in reversed(item)}
        return [reversed_keys(entry) for entry in item] if isinstance(item, list) else item

    assert manifest.digest(value) == manifest.digest(reversed_keys(value))


@given(JSON)
def test_an_object_covers_itself_and_itself_with_additions(value):
    assert manifest.covers(value, value)
    if isinstance(value, dict):
        assert manifest.covers(value | {"added by the API server": 1}, value)


@pytest.mark.parametrize(
    ("live", "desired", "covered"),
    [
        ({"cpu": "1"}, {"cpu": "1000m"}, True),
        ({"n": "8"}, {"n": 8}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"env": []}, True),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": []}, False),
        ([{"a": 1, "default": 0}], [{"a": 1}], True),
        ([{"a": 1}, {"b": 1}], [{"a": 1}], False),
    ],
)
def test_covering_ignores_defaults_and_spelling_but_no_difference(live, desired, covered):
    assert manifest.covers(live, desired) is covered


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 1},
        {"replicas": 5},
        {"engine": {"args": [], "env": []}},
        {"network": {}},
        {"parallelism": {"attention": "auto", "redundantExperts": 0}},
        {"speculativeTokens": None},
        {"service": {"port": 81}},
        {"suspend": True},
        {"weights": {"deletionPolicy": "Delete", "storage": {"size": "1Gi"}}},
        {"model": {"revision": "main", "source": "hf://a/b"}},
    ],
    ids=str,
)
def test_what_does_not_shape_pods_is_not_in_the_revision(spec):
    base = {"model": {"source": "hf://a/b"}}
    assert plan.revision(Spec.model_validate(base | spec)) == plan.revision(Spec.model_validate(base))


@pytest.mark.parametrize(
    "spec",
    [
        {"nodes": 2},
        {"engine": {"image": "x"}},
        {"model": {"source": "hf://a/b", "revision": "v2"}},
        {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}},
        {"startup": {"timeoutSeconds": 100}},
        {"network": {"interface": "eth0"}},
        {"parallelism": {"attention": "tensor"}},
        {"parallelism": {"redundantExperts": 8}},
        {"speculativeTokens": 0},
        {"accelerator": {"perNode": 4}},
    ],
    ids=str,
)
def test_what_shapes_pods_is_in_the_revision(spec):
    base = {"model": {"source": "hf://a/b"}}
    assert plan.revision(Spec.model_validate(base | spec)) != plan.revision(Spec.model_validate(base))


def test_the_revision_of_an_object_stays_what_it_was():
    """Golden on purpose: another value here means that an upgrade of the operator rolls every group that runs."""
    spec = Spec.model_validate({"model": {"source": "hf://a/b"}, "nodes": 2, "engine": {"image": "x"}})
    assert plan.revision(spec) == "6a8dcad371"


OURS = {
    "containers": [{"name": "engine", "env": [{"name": "A", "value": "1"}], "probe": {"http": 1, "period": 5}}],
    "tolerations": [{"key": "a"}],
    "grace": 60,
}


@pytest.mark.parametrize(
    ("patch", "result"),
    [
        ({}, OURS),
        ({"grace": 5}, OURS | {"grace": 5}),
        ({"grace": None}, {key: value for key, value in OURS.items() if key != "grace"}),
        ({"tolerations": [{"key": "b"}]}, OURS | {"tolerations": [{"key": "b"}]}),
        (
            {"containers": [{"name": "engine", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]}]},
            OURS
            | {
                "containers": [
                    OURS["containers"][0] | {"env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]}
                ]
            },
        ),
        (
            {"containers": [{"name": "engine", "probe": {"$patch": "replace", "exec": 2}}]},
            OURS | {"containers": [OURS["containers"][0] | {"probe": {"exec": 2}}]},
        ),
        (
            {
                "containers": [
                    {"name": "engine", "probe": {"$patch": "delete"}, "env": [{"name": "A", "$patch": "delete"}]}
                ]
            },
            OURS | {"containers": [{"name": "engine", "env": []}]},
        ),
        ({"containers": [{"name": "sidecar"}]}, OURS | {"containers": [*OURS["containers"], {"name": "sidecar"}]}),
    ],
    ids=str,
)
def test_an_overlay_merges_as_kubernetes_does(patch, result):
    assert overlay.merged(OURS, patch) == result


@given(JSON.filter(lambda value: isinstance(value, dict)))
def test_an_empty_overlay_changes_nothing(value):
    assert overlay.merged(value, {}) == value


def test_a_condition_keeps_its_time_while_its_status_stays():
    first = conditions.timed([Judgement("Fits", "False", "A", "a")], [], generation=1, now=NOW)
    later = NOW + timedelta(hours=1)
    same = conditions.timed([Judgement("Fits", "False", "B", "b")], first, generation=2, now=later)
    assert same[0].last_transition_time == first[0].last_transition_time
    assert (same[0].reason, same[0].observed_generation) == ("B", 2)
    changed = conditions.timed([Judgement("Fits", "True", "C", "c")], same, generation=2, now=later)
    assert changed[0].last_transition_time == "2026-11-25T13:00:00Z"


@given(st.lists(st.sampled_from(["True", "False", "Unknown"]), min_size=7, max_size=7), st.booleans(), st.booleans())
def test_ready_is_true_only_if_all_that_serving_needs_is(statuses, progressing, stalled):
    judged = [
        Judgement(name, status, f"{name}Reason", "m")
        for name, status in zip(conditions.ALWAYS[1:], statuses, strict=True)
    ]
    by_type = {judgement.type: judgement for judgement in judged}
    result = conditions.summarised(judged, progressing=progressing, stalled=stalled)
    needed = (conditions.SPEC_VALID, conditions.WEIGHTS_READY, conditions.GROUPS_READY, conditions.ENDPOINT_READY)
    serves = all(by_type[name].status == "True" for name in needed) and by_type[conditions.FITS].status != "False"
    assert result[0].type == conditions.READY
    assert (result[0].status == "True") is serves
    extra = {judgement.type for judgement in result[8:]}
    assert extra == ({conditions.STALLED} if stalled else {conditions.RECONCILING} if progressing else set())


@given(st.integers(min_value=1, max_value=10**6))
def test_retries_are_spaced_from_one_second_to_one_minute(failures):
    assert 1 <= workers.retry_delay(failures) <= 60
    assert workers.retry_delay(failures) <= workers.retry_delay(failures + 1)
