"""`python -m deepseek_runtime.generate`, also as `dsv3 generate`: answers on standard output, without a server.

Alone it is the whole group; under torchrun every rank runs it, rank 0 reads and writes. Exit code 0 when everything was
answered, 1 when the group broke, 2 for what cannot be done, 130 after Ctrl-C; the last three with one sentence at most.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from deepseek_runtime.dist.topology import Topology, TopologyError
from deepseek_runtime.model.config import load_config
from deepseek_runtime.offline.fetch import resolve
from deepseek_runtime.offline.launch import INTERRUPTED, launch, refuse
from deepseek_runtime.offline.order import Order, parse
from deepseek_runtime.settings import Settings, StartupError
from deepseek_runtime.weights.hub import DownloadError

if TYPE_CHECKING:
    from deepseek_runtime.dist.group import Group
    from deepseek_runtime.engine.process import End, Ending, Role

MODULE = "deepseek_runtime.generate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer what is asked; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    try:
        topology = Topology.from_env(os.environ)
        order = parse(given)
        folder = resolve(order.model, console)
        if order.config:
            load_config(folder, order.config)  # refused here, before anything slow is imported
        settings = _settings(order, folder)
        if order.processes > 1 and "RANK" not in os.environ:
            return launch(order.processes, MODULE, _with_model(given, folder))
        return _Rank(order, settings, topology, console).run()
    except (StartupError, TopologyError, DownloadError, ValueError, OSError) as error:
        return refuse(str(error), os.environ)
    except KeyboardInterrupt:  # before the ranks, or this one, obey signals themselves
        return INTERRUPTED


def _with_model(arguments: list[str], folder: Path) -> list[str]:
    """Arguments for the ranks, which need not ask the hub again."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], "--model", str(folder), *arguments[end:]]


def _settings(order: Order, model: Path) -> Settings:
    """The engine's settings, in which all questions find room."""
    from deepseek_runtime.serve import parse as parse_engine

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            settings = parse_engine(["--model", str(model), *order.engine])
    except SystemExit as error:  # it has printed its usage, of which one sentence concerns this command
        raise StartupError(said.getvalue().rpartition("error: ")[2].strip()) from error
    places = max(settings.max_queued, len(order.questions or ()))
    return replace(settings, max_queued=places, config=order.config)


class _Rank:
    """This process's part in the group."""

    def __init__(self, order: Order, settings: Settings, topology: Topology, console: Console) -> None:
        from deepseek_runtime.health import Health
        from deepseek_runtime.offline.loading import Display

        self._order = order
        self._settings = settings
        self._topology = topology
        self._health = Health(rank=topology.rank, world_size=topology.world_size)
        self._display = Display(topology, console)

    def run(self) -> int:
        """Load, answer or follow, and leave; the exit code."""
        from deepseek_runtime.dist.init import join_group
        from deepseek_runtime.engine.process import RankProcess

        level = logging.INFO if self._order.verbose else logging.CRITICAL + 1
        logging.basicConfig(level=level, format=f"rank {self._topology.rank}: %(message)s")
        settings = self._settings
        process = RankProcess(
            self._health, lambda: join_group(settings.device, ordered_sums=settings.batch_invariant), self._prepare
        )
        ending = process.run()
        self._display.close()
        if ending.code == 2 and not process.watched:
            return refuse(ending.message, os.environ)
        return self._code(ending, interrupted=process.interrupted)

    def _prepare(self, group: Group, end: End) -> Role:
        from deepseek_runtime.engine.build import load_rank, make_engine
        from deepseek_runtime.engine.process import Ending, Follower
        from deepseek_runtime.offline.session import Session, work_of
        from deepseek_runtime.server.local import Local
        from deepseek_runtime.text.template import ChatTemplate
        from deepseek_runtime.text.tokenizer import Tokenizer

        tokenizer = Tokenizer(self._settings.model)
        template = ChatTemplate(self._settings.model, tokenizer)
        with self._display as report:
            loaded = load_rank(self._settings, group, report)
        if group.rank > 0:
            return Follower(self._health, end, loaded.runner)

        def on_failure(message: str) -> None:
            end(Ending(1, message, failed=True))

        engine = make_engine(self._settings, loaded, group.device, on_failure)
        local = Local(engine=engine, tokenizer=tokenizer, template=template, max_model_len=loaded.limits.max_model_len)
        group.expect_progress(self._settings.stall_timeout)
        return Session(self._health, end, engine, work_of(self._order, local))

    def _code(self, ending: Ending, *, interrupted: bool) -> int:
        rank = self._topology.rank
        if ending.code and (rank == 0 or ending.code == 1):
            where = f"rank {rank}: " if rank else ""
            sys.stderr.write(f"error: {where}{ending.message}\n")
        return INTERRUPTED if rank == 0 and not ending.code and interrupted else ending.code


if __name__ == "__main__":
    from deepseek_runtime.serve import leave

    leave(main())
