"""A whole server over the echo model, on a real port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.engine.blocks import BlockManager
from deepseek_runtime.engine.engine import Engine
from deepseek_runtime.engine.runner import Runner
from deepseek_runtime.engine.scheduler import Scheduler
from deepseek_runtime.engine.step import StepPlan
from deepseek_runtime.health import Health, Phase
from deepseek_runtime.server.app import build_app
from deepseek_runtime.server.listen import HttpServer, bind
from deepseek_runtime.server.metrics import Metrics
from deepseek_runtime.server.middleware import Policy
from deepseek_runtime.server.service import ServerState, Service
from deepseek_runtime.text.grammar import Grammars
from deepseek_runtime.text.template import ChatTemplate
from deepseek_runtime.text.tokenizer import Tokenizer
from fake_model import EchoExecutor, write_tokenizer
from releases import make_release
from scripted_model import ScriptedExecutor

POLICY = {field.name for field in fields(Policy)}


class SlowEcho(EchoExecutor):
    """The echo model; while the gate is closed, each step waits for `let()`."""

    def __init__(self) -> None:
        super().__init__(num_blocks=256, block_size=16)
        self.gate = threading.Event()
        self.gate.set()
        self.steps_allowed = threading.Semaphore(0)

    def run(self, plan: StepPlan) -> Tensor:
        while not self.gate.is_set() and not self.steps_allowed.acquire(timeout=0.01):
            pass
        return super().run(plan)


class EchoServer:
    """Engine, health and HTTP server; names `echo` and `org/echo`; a context of 512 tokens."""

    max_model_len = 512

    def __init__(
        self, folder: Path, *, max_running: int = 4, max_queued: int = 8, speculative_tokens: int = 0, **state: Any
    ) -> None:
        self.tokenizer = Tokenizer(folder)
        self.executor = self.make_executor()
        scheduler = Scheduler(BlockManager(256, 16), token_budget=64, max_running=max_running)
        size = self.tokenizer.size
        runner = Runner(self.executor, Group(), vocab_size=size, speculative_tokens=speculative_tokens)
        self.engine = Engine(runner, scheduler, max_queued=max_queued, on_failure=lambda _: None, keep_alive=0.2)
        self.health = Health(rank=0, world_size=1, stall_seconds=5)
        policy = Policy(**{name: state.pop(name) for name in [*state] if name in POLICY})
        self.state = ServerState(names=("echo", "org/echo"), health=self.health, metrics=Metrics("echo"), **state)
        self.listener = bind("127.0.0.1", 0)
        self.http = HttpServer(build_app(self.state, policy), self.listener, policy.bounds)
        template = ChatTemplate(folder, self.tokenizer)
        self.service = Service(
            engine=self.engine,
            tokenizer=self.tokenizer,
            template=template,
            grammars=Grammars(self.tokenizer, template.dialect),
            max_model_len=self.max_model_len,
            places=max_running + max_queued,
        )
        self.url = f"http://127.0.0.1:{self.http.port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def make_executor(self) -> Any:
        """The model."""
        return SlowEcho()

    def open(self) -> None:
        """Become ready."""
        self.engine.start()
        self.health.watch(lambda: self.engine.stats().step_age)
        self.state.service = self.service
        self.health.enter(Phase.READY)

    def close(self) -> None:
        if isinstance(self.executor, SlowEcho):
            self.executor.gate.set()
        self.client.close()
        self.openai.close()
        self.http.stop()
        if self.state.service:
            self.engine.stop(5)

    def metric(self, name: str) -> float:
        """The value of a metric's line, labels included in the name."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")


class ScriptedServer(EchoServer):
    """A server whose model says what `executor.say` told it."""

    executor: ScriptedExecutor
    max_model_len = 2048

    def make_executor(self) -> ScriptedExecutor:
        return ScriptedExecutor(self.tokenizer)


ServerMaker = Callable[..., EchoServer]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make_server(tokenizer_folder: Path) -> Iterator[ServerMaker]:
    """Makes servers that listen but are not ready yet."""
    with ExitStack() as stack:

        def make(**options: Any) -> EchoServer:
            server = EchoServer(tokenizer_folder, **options)
            server.http.start()
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture(scope="session")
def shared_server(tokenizer_folder: Path) -> Iterator[EchoServer]:
    """A server that is ready, for tests that only ask it something."""
    server = EchoServer(tokenizer_folder)
    server.http.start()
    server.open()
    yield server
    server.close()


@pytest.fixture(scope="session")
def release_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ScriptedServer]]:
    """Ready servers with the text sides of releases, by name, whose model is scripted."""
    with ExitStack() as stack:

        @cache
        def make(name: str) -> ScriptedServer:
            folder = tmp_path_factory.mktemp(name.replace(".", "-"))
            make_release(name, folder)
            server = ScriptedServer(folder)
            server.http.start()
            server.open()
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def server(make_server: ServerMaker) -> EchoServer:
    """A server that is ready."""
    server = make_server()
    server.open()
    return server
