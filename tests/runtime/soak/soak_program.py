"""One rank of a group that answers the soak's requests: `torchrun … soak_program.py COUNT SEED OUT`.

Rank 0 writes OUT: the answers, and what the engine holds when all have ended.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.engine.build import load_rank, make_engine
from deepseek_runtime.settings import Settings
from soak_requests import TUTOR, ask_all, random_asks

CACHE_TOKENS = 192
"""Room for a few answers of those that run at once, so that sequences are preempted all the time."""

AT_ONCE = 24


def main() -> None:
    count, seed, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    settings = Settings(
        model=TUTOR,
        served_model_name=("tutor",),
        device="cpu",
        kv_tokens=CACHE_TOKENS,
        block_size=4,
        max_running=AT_ONCE,
        max_batch_tokens=48,
        speculative_tokens=2,
    )
    group = join_group("cpu")
    loaded = load_rank(settings, group, lambda _: None)
    if group.rank:
        loaded.runner.follow(lambda _: None)
        group.close()
        return
    engine = make_engine(settings, loaded, group.device, on_failure=sys.exit)
    engine.start()
    answers = ask_all(engine, list(random_asks(count, seed)), AT_ONCE)
    drained = engine.drain(60)
    stats = engine.stats()
    figures = {
        name: getattr(stats, name) for name in ("running", "waiting", "cache_usage", "preemptions", "prefix_hits")
    }
    engine.stop(60)
    group.close()
    figures["speculation"] = asdict(stats.speculation)
    report = {"answers": [[asdict(a) for a in ask] for ask in answers], "drained": drained, "stats": figures}
    out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
