"""Clients at work while groups are replaced: by a change of the spec, as users roll them, through the Service."""

import json
import re
from typing import Any

import pytest

from cluster_access import Cluster
from deployment import Deployment
from traffic import Event, tally, traffic

pytestmark = pytest.mark.cluster

CLIENTS = 8
SHORT_DRAIN = {"args": ["--drain-timeout=2"]}
WELCOME_LATER = re.compile(r'503 \d+ \{"error":.*"code":"(draining|group_broken)"')
"""A refusal with a time to come back; the group counts as broken once streams outlived its drain."""


def test_no_stream_is_cut_without_an_error_event_while_the_group_rolls(cluster: Cluster, namespace: str) -> None:
    """Twice: with time to drain, then with so little that streams have to be told."""
    deployment = Deployment(cluster, namespace, "rolling")
    deployment.apply(nodes=2)
    deployment.wait_ready()
    with traffic(cluster, "streams", deployment.endpoint(), CLIENTS) as clients:
        for engine in (SHORT_DRAIN, {}):
            clients.wait_for_all("began", CLIENTS)
            _roll(deployment, nodes=2, engine=engine)
        clients.wait_for_all("whole", CLIENTS)
        events = clients.stop()
    deployment.delete()
    print(tally(events))

    assert _of("cut", events) == []
    told = _of("told", events)
    assert all(json.loads(e.detail)["error"]["message"] for e in told)
    assert 0 < len(told) <= CLIENTS, "only the second roll was to end streams before they were whole"
    assert [e for e in _of("refused", events) if not WELCOME_LATER.match(e.detail)] == []


def test_no_client_of_the_sdk_sees_a_failure_while_two_groups_roll(cluster: Cluster, namespace: str) -> None:
    deployment = Deployment(cluster, namespace, "rolling-two")
    deployment.apply(nodes=1, replicas=2)
    deployment.wait_ready()
    with traffic(cluster, "answers", deployment.endpoint(), CLIENTS) as clients:
        clients.wait_for_all("whole", CLIENTS)
        _roll(deployment, nodes=1, replicas=2, engine=SHORT_DRAIN)
        clients.wait_for_all("whole", CLIENTS)
        events = clients.stop()
    deployment.delete()
    print(tally(events))

    assert _of("failed", events) == []


def _roll(deployment: Deployment, **spec: Any) -> None:
    """Change the spec; return when every pod is another one and all are Ready."""
    before = _uids(deployment)
    deployment.apply(**spec)
    deployment.wait(lambda: not before & _uids(deployment) and _serves_whole(deployment), "was rolled")


def _uids(deployment: Deployment) -> set[str]:
    return {pod["metadata"]["uid"] for pod in deployment.pods().values()}


def _serves_whole(deployment: Deployment) -> bool:
    status = deployment.status()
    return deployment.is_ready() and status["readyReplicas"] == status["updatedReplicas"] == status["replicas"]


def _of(what: str, events: list[Event]) -> list[Event]:
    return [event for event in events if event.what == what]
