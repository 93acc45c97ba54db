"""Answers of a server that replays its decode steps from graphs, against one that launches every kernel."""

import logging
from dataclasses import replace

import pytest
import torch

from deepseek_runtime.server.local import open_local
from deepseek_runtime.settings import Settings, checkpoint_folder

QUESTIONS = ["What is 792 minus 297?", "What is 12 times 34?", "What is 123 plus 989?"]


def answers(settings: Settings) -> list[str]:
    local = open_local(settings, lambda _: None)
    texts = [""] * len(QUESTIONS)
    jobs = [local.job([{"role": "user", "content": question}], max_tokens=40) for question in QUESTIONS]
    for piece in local.run(jobs):
        texts[piece.choice] += piece.text
    assert local.engine.stop(10)
    return texts


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_graphs_change_no_answer(gpu: torch.device, caplog: pytest.LogCaptureFixture, drafts: int) -> None:
    settings = Settings(
        model=checkpoint_folder("tutor"),
        served_model_name=("tutor",),
        device=gpu.type,
        dtype="float32",
        kv_tokens=4096,
        max_running=4,
        speculative_tokens=drafts,
    )
    with caplog.at_level(logging.INFO, "deepseek_runtime.engine"):
        replayed, launched = answers(settings), answers(replace(settings, graphs=False))
    assert replayed == launched
    assert "495" in replayed[0]
    assert f"captured {3 * (1 + (drafts > 0))} shapes" in caplog.text
    assert "not captured in graphs: --no-graphs says so" in caplog.text
