"""`dsv3`: serve, ask, fetch and plan, on this machine and without Kubernetes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from deepseek_runtime import sizing
from deepseek_runtime.model.config import load_config
from deepseek_runtime.settings import Settings, StartupError, checkpoint_folder, package_version
from deepseek_runtime.weights.download import LineReport, Order, Progress, Receipt, Report, download
from deepseek_runtime.weights.hub import DownloadError, Hub

if TYPE_CHECKING:
    from deepseek_runtime.server.local import Local

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
out, err = Console(), Console(stderr=True)

ModelArgument = Annotated[str, typer.Argument(help="tutor, a checkpoint folder, or a hub name such as org/name")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help="tutor, a checkpoint folder, or a hub name")]
MaxTokens = Annotated[int | None, typer.Option(help="Bound on the tokens of an answer.", min=1)]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.", min=0, max=2)]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"dsv3 {package_version()}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Serve DeepSeek-V3 and models of its family."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: ModelArgument = "tutor",
    nproc: Annotated[int, typer.Option(help="Processes, one per accelerator.", min=1)] = 1,
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve the OpenAI-compatible API. Further flags go to `python -m deepseek_runtime.serve` as they are."""
    flags = ["--model", str(resolve(model)), "--port", str(port), "--host", host, *context.args]
    if "--served-model-name" not in flags:
        flags += ["--served-model-name", model]
    if nproc > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "deepseek_runtime.serve", *flags])
    from deepseek_runtime import serve as program

    program.leave(program.main([*flags, *([] if "--health-port" in flags else ["--health-port", "0"])]))


@app.command()
def generate(
    prompt: str, model: ModelOption = "tutor", max_tokens: MaxTokens = None, temperature: Temperature = 0.0
) -> None:
    """Answer one question in this process, word by word."""
    with _local(model) as local:
        _stream(local.answer([_user(prompt)], max_tokens=max_tokens, temperature=temperature))


@app.command()
def chat(model: ModelOption = "tutor", max_tokens: MaxTokens = None, temperature: Temperature = 0.0) -> None:
    """Talk with a model in this process. An empty line, or Ctrl-D, ends it."""
    with _local(model) as local:
        messages: list[dict[str, str]] = []
        while question := _ask():
            messages.append(_user(question))
            answer = _stream(local.answer(messages, max_tokens=max_tokens, temperature=temperature))
            messages.append({"role": "assistant", "content": answer})


@app.command("download")
def fetch(
    name: Annotated[str, typer.Argument(help="hub name such as deepseek-ai/DeepSeek-V3-0324")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    endpoint: Annotated[str | None, typer.Option(help="Hub or mirror; default: HF_ENDPOINT.")] = None,
    destination: Annotated[Path | None, typer.Option(help="Folder; default: one in your cache.")] = None,
) -> None:
    """Download a checkpoint and verify the hash of every file."""
    folder = destination or _cache_folder(name)
    receipt = _download(Order(source=f"hf://{name}", revision=revision, destination=folder), Hub(endpoint=endpoint))
    out.print(f"{folder}: {receipt.files} files, {receipt.bytes / 1e9:.2f} GB, commit {receipt.commit}", soft_wrap=True)


@app.command()
def plan(
    model: ModelArgument = "deepseek-ai/DeepSeek-V3-0324",
    accelerator: Annotated[str, typer.Option(help="Product, such as H200 or MI300X.")] = "H200",
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    per_node: Annotated[int, typer.Option(min=1)] = 8,
    attention: Annotated[str, typer.Option(help="tensor or data")] = "tensor",
) -> None:
    """Say whether a model fits, with the arithmetic and the nearest layout that does. Reads no weights."""
    device = sizing.accelerator(accelerator)
    if device is None:
        raise StartupError(f"accelerator {accelerator!r} is not known, only {', '.join(sizing.ACCELERATORS)}")
    if attention not in ("tensor", "data"):
        raise StartupError(f"--attention must be tensor or data, not {attention!r}")
    mode: sizing.Attention = "data" if attention == "data" else "tensor"
    layout = sizing.Layout(nodes=nodes, per_node=per_node, attention=mode, split_dense=False)
    out.print(sizing.advise(_shape(model), layout, device.memory_bytes), highlight=False, soft_wrap=True)


def resolve(model: str) -> Path:
    """The checkpoint's folder: the shipped one, one on disk, or one of the hub's, fetched and verified first."""
    folder = checkpoint_folder(model)
    if folder.is_dir():
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise StartupError(f"{model}: neither 'tutor', nor a folder, nor a hub name of the form org/name")
    folder = _cache_folder(model)
    _download(Order(source=f"hf://{model}", destination=folder), Hub())
    return folder


def _cache_folder(name: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dsv3" / name.replace("/", "--")


def _download(order: Order, hub: Hub) -> Receipt:
    if not out.is_terminal:
        return download(order, hub, LineReport())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=out) as bar:
        return download(order, hub, _bar_report(bar, order.source))


def _bar_report(bar: Bar, title: str) -> Report:
    task = bar.add_task(title, total=None)

    def report(progress: Progress) -> None:
        bar.update(task, completed=progress.bytes_done, total=progress.bytes_total)

    return report


def _shape(model: str) -> sizing.ModelShape:
    if known := sizing.known_shape(model):
        return known
    file = checkpoint_folder(model) / "config.json"
    if not file.is_file():
        raise StartupError(f"{model}: neither a known hub name nor a folder with config.json")
    return load_config(file.parent).shape


@contextmanager
def _local(model: str) -> Iterator[Local]:
    """A model in this process, with a progress bar while it loads."""
    folder = resolve(model)
    settings = Settings(model=folder, served_model_name=(model,))
    with Bar(TextColumn("{task.description}"), BarColumn(), console=err, transient=True) as bar:
        task = bar.add_task(f"loading {model}", total=1.0)
        from deepseek_runtime.server.local import open_local

        local = open_local(settings, lambda share: bar.update(task, completed=share))
    try:
        yield local
    finally:
        local.engine.stop(5)


def _stream(pieces: Iterator[str]) -> str:
    text = ""
    for piece in pieces:
        out.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        text += piece
    out.print()
    return text


def _ask() -> str:
    try:
        return out.input("[bold]> [/bold]").strip()
    except EOFError:
        return ""


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def main() -> None:
    """Run the command line; what goes wrong is one sentence and code 2."""
    _guard(app)


def _guard(run: Callable[[], None]) -> None:
    try:
        run()
    except (StartupError, DownloadError, ValueError, OSError) as error:
        err.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
