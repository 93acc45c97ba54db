"""Two thousand random requests on two ranks whose cache is far too small for them: each answer is as if it were alone.

The answers to compare with come from one rank without speculation and prefix cache, one request at a time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from deepseek_runtime.dist.group import Group
from deepseek_runtime.engine.build import load_rank, make_engine
from deepseek_runtime.engine.engine import Engine
from deepseek_runtime.settings import Settings
from soak_requests import TUTOR, Answer, Ask, ask_all, random_asks

PROGRAM = Path(__file__).with_name("soak_program.py")
COUNT, SEED = 2000, 11


def start(out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*torchrun, str(PROGRAM), str(COUNT), str(SEED), str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def engine_alone() -> Engine:
    settings = Settings(
        model=TUTOR, served_model_name=("tutor",), device="cpu", speculative_tokens=0, prefix_caching=False
    )
    group = Group()
    engine = make_engine(settings, load_rank(settings, group, lambda _: None), group.device, lambda _: None)
    engine.start()
    return engine


def check(ask: Ask, together: list[dict[str, Any]], alone: list[Answer]) -> None:
    """A client that left has the beginning of the answer, any other has all of it."""
    for choice, expected in zip(together, alone, strict=True):
        if choice["finish_reason"] is None:
            assert ask.cancel_after is not None
            assert choice["tokens"] == expected.tokens[: len(choice["tokens"])]
        else:
            assert choice == {"tokens": expected.tokens, "finish_reason": expected.finish_reason}


def test_every_answer_under_pressure_equals_the_one_computed_alone(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    run = start(out)
    engine = engine_alone()
    asks = list(random_asks(COUNT, SEED))
    whole = [Ask(ask.prompt, ask.params, ask.n, 0, cancel_after=None) for ask in asks]
    alone = ask_all(engine, whole, at_once=1)
    engine.stop(60)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 0, output[-4000:]
    soak = json.loads(out.read_text())
    for ask, together, expected in zip(asks, soak["answers"], alone, strict=True):
        check(ask, together, expected)
    stats = soak["stats"]
    assert soak["drained"]
    assert (stats["running"], stats["waiting"], stats["cache_usage"]) == (0, 0, 0), "nothing leaked"
    assert stats["preemptions"] > 20, "the cache was too small all the time"
    assert stats["prefix_hits"] > 1000
    assert sum(stats["speculation"]["accepted"]) > 1000
