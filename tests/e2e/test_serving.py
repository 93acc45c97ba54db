"""Right answers through the LoadBalancer Service, from several pods as from one."""

import re
from typing import Any

import pytest

from asking import ask
from deployment import Deployment
from tutor_training.problems import final_answer, held_out_problems

pytestmark = pytest.mark.cluster

LAYOUTS: dict[str, Any] = {
    "single": {"nodes": 1},
    "data": {"nodes": 2, "parallelism": {"attention": "data", "redundantExperts": 2}, "speculativeTokens": 2},
}


def test_the_answer_comes_step_by_step_from_two_pods_on_two_nodes(tutor: Deployment) -> None:
    pods = tutor.pods()
    nodes = {pod["spec"]["nodeName"] for pod in pods.values()}
    (reply,) = ask(tutor.cluster, tutor.endpoint(), ["What is 792 minus 297?"])

    assert reply.text is not None, reply.error
    assert "12 - 7 = 5" in reply.text
    assert final_answer(reply.text) == 495
    assert sorted(pods) == ["tutor-g0-0", "tutor-g0-1"]
    assert len(nodes) == min(2, _node_count(tutor))


def test_at_least_98_percent_of_200_held_out_problems_are_right(tutor: Deployment) -> None:
    problems = held_out_problems(200)
    replies = ask(tutor.cluster, tutor.endpoint(), [p.question for p in problems], concurrency=16)

    assert [reply.error for reply in replies if reply.error] == []
    wrong = [p.question for p, r in zip(problems, replies, strict=True) if final_answer(r.text or "") != p.result]
    assert len(wrong) <= 4, wrong


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_writes_the_same_text(tutor: Deployment, name: str) -> None:
    questions = [problem.question for problem in held_out_problems(20, seed=11)]
    other = Deployment(tutor.cluster, tutor.namespace, name)
    other.apply(**LAYOUTS[name])
    other.wait_ready()
    texts = [[r.text for r in ask(d.cluster, d.endpoint(), questions)] for d in (tutor, other)]
    other.delete()

    assert None not in texts[0]
    assert texts[0] == texts[1]


def test_pods_compute_with_the_kernels_that_their_image_brought(tutor: Deployment) -> None:
    """Without a compiler, a home or a writable root; only a processor without the instructions is excused."""
    for pod in tutor.pods():
        log = tutor.kubectl("logs", pod)
        assert re.search(r"kernels: (AVX-512, \S+/dsv3_kernels\.so|plain torch, this CPU has no)", log), log


def _node_count(deployment: Deployment) -> int:
    return len(deployment.cluster.kubectl("get", "nodes", "-o", "name").stdout.split())
