"""Damaged weights are never served: the file is named, no pod starts, and a mended hub is enough to go on."""

import pytest

from asking import ask
from deployment import Deployment
from tutor_training.problems import final_answer

pytestmark = pytest.mark.cluster

SHARD = "model-00002-of-000003.safetensors"
_PATH = f"/hub/dsv3/tutor/{SHARD}"
_SAVE = f"import shutil; shutil.copy('{_PATH}', '/hub/saved')"
_MEND = f"import shutil; shutil.copy('/hub/saved', '{_PATH}')"
_DAMAGE = {
    "truncated": f"import os; os.truncate('{_PATH}', os.path.getsize('{_PATH}') - 4096)",
    "bit-flipped": (
        f"f = open('{_PATH}', 'r+b'); f.seek(-1000, 2); b = f.read(1)[0]; f.seek(-1000, 2); f.write(bytes([b ^ 4]))"
    ),
}


def _on_hub(deployment: Deployment, code: str) -> None:
    deployment.kubectl("exec", "deployment/hub", "--", "python", "-c", code)


@pytest.mark.parametrize("damage", sorted(_DAMAGE))
def test_a_damaged_shard_is_named_and_no_pod_starts_until_it_is_mended(tutor: Deployment, damage: str) -> None:
    deployment = Deployment(tutor.cluster, tutor.namespace, damage)
    _on_hub(deployment, _SAVE)
    try:
        _on_hub(deployment, _DAMAGE[damage])
        deployment.apply(nodes=1)
        deployment.wait(lambda: SHARD in deployment.condition("WeightsReady").get("message", ""), f"named {SHARD}", 120)

        assert deployment.condition("WeightsReady")["status"] == "False"
        assert deployment.condition("Ready")["status"] == "False"
        assert deployment.children("statefulsets") == []
        assert deployment.pods() == {}
    finally:
        _on_hub(deployment, _MEND)
    deployment.wait_ready()
    (reply,) = ask(deployment.cluster, deployment.endpoint(), ["What is 792 minus 297?"])
    assert final_answer(reply.text or "") == 495, reply
    deployment.delete()
