"""The commands `dsv3 chat` and `dsv3 bench`: their options, and what becomes of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepseek_runtime.client.chat import Chat, Conversation
from deepseek_runtime.client.endpoint import DEFAULT_URL, Endpoint, EndpointError
from deepseek_runtime.client.figures import Summary, plot, summarise, table
from deepseek_runtime.client.load import LoadGenerator, Workload
from deepseek_runtime.settings import StartupError

MOST_CLIENTS = 4096
out, err = Console(), Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", help="Base URL of the API, with /v1 where it has one.")]
Model = Annotated[str | None, typer.Option(help="Model; default: the first that is served.")]
Key = Annotated[str | None, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="API key.", show_default=False)]


def chat(  # noqa: PLR0913, PLR0917 (a parameter is an option)
    question: Annotated[str | None, typer.Argument(help="Ask this, print the answer and leave.")] = None,
    url: Url = DEFAULT_URL,
    model: Model = None,
    api_key: Key = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    thinking: Annotated[bool | None, typer.Option(help="Let the model reason first.", show_default=False)] = None,
) -> None:
    """Talk with any OpenAI-compatible endpoint; `/help` lists what else can be said. Ctrl-C stops an answer."""
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    if thinking is not None:
        options["chat_template_kwargs"] = {"thinking": thinking}
    endpoint = Endpoint(url, api_key)
    talk = Conversation(_model(endpoint, model), system, options=options)
    session = Chat(endpoint, talk, out, _reader())
    try:
        if question is not None:
            session.ask(question)
            return
        if sys.stdin.isatty():
            out.print(f"{talk.model} at {url}. /help says what you can do.", style="cyan", markup=False)
        session.run()
    except EndpointError as error:
        raise StartupError(str(error)) from error


def bench(  # noqa: PLR0913, PLR0917 (a parameter is an option)
    url: Url = DEFAULT_URL,
    model: Model = None,
    api_key: Key = None,
    concurrency: Annotated[str, typer.Option(help="Clients at a time, a level for each number.")] = "1,4,16",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, about.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a level.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, help="No request of a level begins after this time.")] = 60.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of silence that end a request.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    chart: Annotated[Path | None, typer.Option("--plot", help="Write a chart as SVG.")] = None,
) -> None:
    """Put load on any OpenAI-compatible endpoint: throughput and latencies at each number of clients."""
    levels = _levels(concurrency)
    endpoint = Endpoint(url, api_key, timeout)
    work = Workload(
        model=_model(endpoint, model),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        requests=requests,
        seconds=seconds,
        seed=seed,
    )
    try:
        summaries = asyncio.run(_measure(endpoint, work, levels))
    except EndpointError as error:
        raise StartupError(str(error)) from error
    if as_json:
        content = {"url": url, "model": work.model, "levels": [line.plain() for line in summaries]}
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        out.print(table(summaries))
        for message, count in sum((Counter(line.errors) for line in summaries), Counter[str]()).items():
            out.print(f"{count} × {message}", style="red", markup=False)
    if chart:
        chart.write_text(plot(summaries), encoding="utf-8")
    if not any(line.answers for line in summaries):
        raise typer.Exit(1)


async def _measure(endpoint: Endpoint, work: Workload, levels: list[int]) -> list[Summary]:
    generator = LoadGenerator(endpoint, work)
    await generator.prepare()
    summaries = []
    for level in levels:
        with err.status(f"{level} clients, up to {work.requests} requests"):
            summaries.append(summarise(await generator.run(level)))
    return summaries


def _levels(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= MOST_CLIENTS for part in parts):
        raise StartupError(f"--concurrency {text} is not a list of numbers from 1 to {MOST_CLIENTS}, such as 1,4,16")
    return [int(part) for part in parts]


def _model(endpoint: Endpoint, wanted: str | None) -> str:
    """The model to ask; StartupError where nothing answers, or not as the API does."""
    if wanted:
        return wanted
    try:
        names = endpoint.models()
    except EndpointError as error:
        hint = "" if error.status else ". `dsv3 serve` starts a server; `dsv3 generate --interactive` needs none"
        raise StartupError(f"{error}{hint}") from error
    if not names:
        raise StartupError(f"{endpoint.url} serves no model: name one with --model")
    return names[0]


def _reader() -> Callable[[], str]:
    """Reads a line; in a terminal with a prompt, a history and the keys that edit it."""
    if not sys.stdin.isatty():
        return _next_line
    import readline  # noqa: F401 (to have it is to use it)

    return lambda: input("> ")


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
