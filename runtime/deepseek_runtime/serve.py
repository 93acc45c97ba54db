"""`python -m deepseek_runtime.serve`: serve a checkpoint over HTTP, one process per accelerator under torchrun.

Probes answer first, then torch is imported, the group meets, weights load, a first request runs through all ranks, and
only then is the server ready. Exit code 0 after a drain, 1 when the group broke, 2 when it could not start as told.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_runtime.health import Health, HealthServer
from deepseek_runtime.settings import Settings, StartupError, checkpoint_folder, share_processors

if TYPE_CHECKING:
    from deepseek_runtime.engine.build import Limits
    from deepseek_runtime.engine.engine import Engine
    from deepseek_runtime.engine.process import Ending
    from deepseek_runtime.server.listen import HttpServer
    from deepseek_runtime.server.service import ServerState

FLUSH_SECONDS = 1.5

_WEIGHTS_HELP = "keep FP8 blocks as stored, or as weights of --dtype; auto: by memory and speed (default: auto)"
_ATTENTION_HELP = "split over the ranks: heads of all requests, or requests (default: tensor)"


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Settings from the command line; wrong flags end the program with a sentence and code 2."""
    default = {field.name: field.default for field in dataclasses.fields(Settings)}
    parser = argparse.ArgumentParser(prog="python -m deepseek_runtime.serve", description=__doc__.splitlines()[0])
    parser.set_defaults(**{name: value for name, value in default.items() if value is not dataclasses.MISSING})

    def flag(name: str, kind: type, text: str) -> None:
        value = default[name.replace("-", "_")]
        suffix = "" if value is None else f" (default: {value})"
        parser.add_argument(f"--{name}", type=kind, help=text + suffix)

    def switch(name: str, text: str) -> None:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)

    parser.add_argument("--model", type=checkpoint_folder, required=True, help="checkpoint folder, or 'tutor'")
    parser.add_argument("--served-model-name", action="extend", nargs="+", help="names for clients (default: folder's)")
    flag("host", str, "address to listen on")
    flag("port", int, "port of the API, on rank 0")
    flag("health-port", int, "port of the probes, on local rank 0; 0 for none")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="where to run (default: auto)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], help="type of activations (default: auto)")
    parser.add_argument("--weights", choices=["auto", "fp8", "compute"], help=_WEIGHTS_HELP)
    parser.add_argument("--attention", choices=["tensor", "data"], help=_ATTENTION_HELP)
    flag("redundant-experts", int, "copies of busy routed experts, over all ranks")
    switch("batch-invariant", "compute each request with the same bits whatever runs beside it, at some cost")
    flag("speculative-tokens", int, "tokens drafted by the MTP layer, 0 to 3; default: 1 where there is such a layer")
    switch("prefix-caching", "compute equal beginnings of prompts once")
    switch("graphs", "on a GPU, replay decode steps from graphs that were captured while loading")
    flag("max-model-len", int, "tokens of a prompt and its answer; default: what checkpoint and memory allow")
    flag("kv-tokens", int, "tokens of the cache; default: by memory")
    flag("block-size", int, "tokens of a cache block")
    flag("max-batch-tokens", int, "tokens of a step; default: by device")
    flag("max-running", int, "sequences that run together")
    flag("max-queued", int, "sequences that may wait beyond those")
    flag("request-timeout", float, "seconds for a whole answer")
    flag("drain-timeout", float, "seconds to finish answers after SIGTERM")
    flag("stall-timeout", float, "seconds without progress until readiness is lost")
    _declare_door(flag, switch)
    options = parser.parse_args(arguments)
    options.served_model_name = tuple(options.served_model_name or [options.model.name])
    settings = Settings(**vars(options))
    if problem := settings.problem():
        parser.error(problem)
    return settings


def _declare_door(flag: Callable[[str, type, str], None], switch: Callable[[str, str], None]) -> None:
    """Flags that say who is let in, and what may be asked of the server at once."""
    flag("api-key-folder", Path, "folder of files with one accepted API key each; without it the API is open")
    switch("protect-metrics", "ask for an API key on /metrics, too")
    switch("protect-probes", "ask for an API key on the API port's probes, too; never on --health-port")
    switch("chat-page", "serve a page for chatting at /")
    switch("access-log", "write a JSON line for each request to standard output")
    flag("max-body-mib", int, "MiB of a request's body; beyond: 413")
    flag("max-requests", int, "HTTP requests in work at once; beyond: 429")
    flag("max-connections", int, "open connections; beyond: 429")
    flag("body-timeout", float, "seconds for a request's body to come; beyond: 408")


class Front:
    """Rank 0's HTTP server, up before the model is."""

    def __init__(self, settings: Settings, health: Health) -> None:
        from deepseek_runtime.server import access_log
        from deepseek_runtime.server.app import build_app
        from deepseek_runtime.server.listen import HttpServer, bind
        from deepseek_runtime.server.metrics import Metrics
        from deepseek_runtime.server.middleware import Policy
        from deepseek_runtime.server.service import ServerState
        from deepseek_runtime.text.grammar import Grammars
        from deepseek_runtime.text.template import ChatTemplate
        from deepseek_runtime.text.tokenizer import Tokenizer

        self._tokenizer = Tokenizer(settings.model)
        self._template = ChatTemplate(settings.model, self._tokenizer)
        self._grammars = Grammars(self._tokenizer, self._template.dialect)
        # A first one takes over a second, for what all need of the vocabulary: better now than when a client waits.
        threading.Thread(target=self._grammars.prepare, name="grammars", daemon=True).start()
        self._places = settings.max_running + settings.max_queued
        names = settings.served_model_name
        self._state: ServerState = ServerState(
            names=names, health=health, metrics=Metrics(names[0]), request_timeout=settings.request_timeout
        )
        if settings.access_log:
            access_log.to_stdout()
        policy = Policy.of(settings)
        app = build_app(self._state, policy)
        listener = bind(settings.host, settings.port)
        self._url = f"http://{settings.host}:{listener.getsockname()[1]}/v1"
        self._http: HttpServer = HttpServer(app, listener, policy.bounds)
        self._http.start()

    def open(self, engine: Engine, limits: Limits) -> None:
        """Let requests through to the engine as soon as the rank is ready."""
        from deepseek_runtime.server.service import Service

        self._state.service = Service(
            engine=engine,
            tokenizer=self._tokenizer,
            template=self._template,
            grammars=self._grammars,
            max_model_len=limits.max_model_len,
            places=self._places,
        )
        logging.getLogger(__name__).info("serving %s at %s", ", ".join(self._state.names), self._url)

    def stop(self) -> None:
        """Let the last chunks out, and close."""
        self._http.stop(FLUSH_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the end; the exit code."""
    return serve(parse(arguments))


def serve(settings: Settings) -> int:
    """Run this process's rank until its end; the exit code."""
    share_processors(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {rank}: %(message)s")
    health = Health(rank=rank, world_size=int(os.environ.get("WORLD_SIZE", "1")), stall_seconds=settings.stall_timeout)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave(0))  # until the rank takes over: nothing was accepted yet
    try:
        if local_rank == 0 and settings.health_port:
            _health_server(health, settings).start()
        ending = _run(settings, health, rank)
    except (StartupError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if ending.code == 2:
        sys.stderr.write(f"error: {ending.message}\n")
    return ending.code


def _run(settings: Settings, health: Health, rank: int) -> Ending:
    front = Front(settings, health) if rank == 0 else None

    from deepseek_runtime.dist.group import Group
    from deepseek_runtime.dist.init import join_group
    from deepseek_runtime.engine.build import load_rank, make_engine
    from deepseek_runtime.engine.process import End, Ending, Follower, Leader, RankProcess, Role, Timeouts

    def prepare(group: Group, end: End) -> Role:
        loaded = load_rank(settings, group, health.report, health.loading.count)
        if front is None:
            return Follower(health, end, loaded.runner)
        engine = make_engine(settings, loaded, group.device, lambda message: end(Ending(1, message, failed=True)))
        front.open(engine, loaded.limits)
        return Leader(health, end, engine, group, Timeouts(settings.drain_timeout, settings.stall_timeout))

    ending = RankProcess(
        health, lambda: join_group(settings.device, ordered_sums=settings.batch_invariant), prepare
    ).run()
    if front:
        front.stop()
    return ending


def _health_server(health: Health, settings: Settings) -> HealthServer:
    try:
        return HealthServer(health, settings.host, settings.health_port)
    except OSError as error:
        where = f"port {settings.health_port} of {settings.host}"
        raise StartupError(f"{where} cannot be used: {error.strerror}; choose another --health-port") from error


def leave(code: int) -> None:
    """End the process at once: a thread that hangs in a collective must not keep it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
