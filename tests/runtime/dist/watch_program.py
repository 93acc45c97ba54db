"""One rank that only watches: `python watch_program.py RANK WORLD_SIZE FOLDER SILENCE ARRIVAL`.

It prints "watching", then "lost RANK REASON" when told of a death, "failed …" when a rank says why it ends, and "rank 0
left" when rank 0 says goodbye. Lines on its input: "bye" leaves, "fail …" leaves and tells the others why, "wait
S" prints "quiet" unless a death is reported within S seconds, "enter" enters an exchange, "expect S" expects progress
within S. The store is a folder, so that torch is not needed.
"""

import sys
import threading
from pathlib import Path

from deepseek_runtime.dist.liveness import Callbacks, Limits, Liveness
from deepseek_runtime.dist.progress import Progress
from deepseek_runtime.dist.topology import Topology


class FolderStore:
    """Keys as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, key: str, value: str, /) -> None:
        part = self._folder / f"{key}.part"
        part.write_text(value)
        part.rename(self._folder / key)

    def get(self, key: str, /) -> bytes:
        while not (path := self._folder / key).exists():
            threading.Event().wait(0.01)
        return path.read_bytes()


def say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def main() -> None:
    rank, size, folder, silence, arrival = sys.argv[1:]
    lost = threading.Event()

    def on_lost(rank: int | None, reason: str) -> None:
        say(f"lost {rank} {reason}")
        lost.set()

    topology = Topology(int(rank), int(size), int(rank), int(size))
    limits = Limits(interval=float(silence) / 5, silence=float(silence), arrival=float(arrival))
    progress = Progress()
    callbacks = Callbacks(on_lost, lambda: say("rank 0 left"), lambda *failure: say(f"failed {failure}"))
    liveness = Liveness(topology, FolderStore(Path(folder)), callbacks, limits, progress)
    liveness.start()
    say("watching")
    for line in sys.stdin:
        match line.split():
            case ["wait", seconds]:
                if not lost.wait(float(seconds)):
                    say("quiet")
            case ["enter"]:
                progress.enter()
                say("inside")
            case ["expect", seconds]:
                liveness.expect_progress(float(seconds))
            case ["fail", *words]:
                liveness.fail(2, "\n".join(words))
                say("left")
            case ["bye"]:
                liveness.close()
                say("left")


if __name__ == "__main__":
    main()
