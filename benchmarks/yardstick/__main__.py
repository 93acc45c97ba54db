"""`python -m benchmarks.yardstick`, from the repository's root with its environment: see docs/benchmarks.md."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.yardstick import checkpoint, report
from benchmarks.yardstick.errors import BenchmarkError
from benchmarks.yardstick.places import REPOSITORY
from benchmarks.yardstick.session import Options, Session
from benchmarks.yardstick.sides import PEERS
from benchmarks.yardstick.workload import Workload

_QUICK_PEERS = ("llama", "hf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; 2 where the runtime itself cannot be measured."""
    given = _parser().parse_args(arguments)
    try:
        results = Session(_options(given)).run()
    except BenchmarkError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if page := _page(given):
        report.write(results, page)
    sys.stdout.write(f"{json.dumps(results.as_json()) if given.json else report.markdown(results)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.yardstick", description="Time the runtime and its peers."
    )
    parser.add_argument(
        "--quick", action="store_true", help="batches 1 and 16, prefill 512, llama.cpp and transformers"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of Markdown")
    parser.add_argument("--threads", type=_numbers, metavar="N,…", help="threads to compare at (1,2)")
    parser.add_argument("--peers", type=_peers, metavar="NAME,…", help=f"of {', '.join(PEERS)}, or none")
    parser.add_argument("--batches", type=_numbers, metavar="N,…", help="sequences decoded together (1,8,16,32)")
    parser.add_argument("--rounds", type=int, metavar="N", help="runs of every engine (quick 2, else 3)")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="page to write (RESULTS.md; for a part: none)")
    return parser


def _page(given: argparse.Namespace) -> Path | None:
    """Where the results go. Part of the comparison never takes the place of the published whole."""
    part = given.quick or given.threads or given.peers is not None or given.batches or given.rounds
    return given.out or (None if part else REPOSITORY / "benchmarks/RESULTS.md")


def _options(given: argparse.Namespace) -> Options:
    quick = given.quick
    workload = Workload(
        batches=given.batches or ((1, 16) if quick else (1, 8, 16, 32)),
        prefills=(512,) if quick else (512, 2048),
        samples=3,
        prefill_samples=2,
        vocab_size=checkpoint.CONFIG["vocab_size"],
    )
    return Options(
        workload=workload,
        threads=_threads(given.threads),
        rounds=given.rounds or (2 if quick else 3),
        peers=(_QUICK_PEERS if quick else tuple(PEERS)) if given.peers is None else given.peers,
        thorough=not quick,
        command=shlex.join(["python", "-m", "benchmarks.yardstick", *sys.argv[1:]]),
    )


def _threads(wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """One and two, or what was asked for; a thread without a core of its own would measure the scheduler."""
    cores = len(os.sched_getaffinity(0))
    if wanted and max(wanted) > cores:
        raise BenchmarkError(f"--threads {max(wanted)} is more than the {cores} cores that this process may use")
    return wanted or tuple(range(1, min(cores, 2) + 1))


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) if part.strip().isdigit() else 0 for part in text.split(","))
    if not all(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers above 0, such as 1,8")
    return numbers


def _peers(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no peer is called {unknown[0]!r}: choose of {', '.join(PEERS)}, or none")
    return names


if __name__ == "__main__":
    sys.exit(main())
