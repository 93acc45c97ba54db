"""`dsv3`: serve, ask, measure, fetch and plan, on this machine and without Kubernetes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepseek_runtime import sizing
from deepseek_runtime.client import commands
from deepseek_runtime.model.config import load_config
from deepseek_runtime.offline.fetch import bar, cache_folder, download, resolve
from deepseek_runtime.settings import StartupError, checkpoint_folder, package_version
from deepseek_runtime.weights.download import Order
from deepseek_runtime.weights.hub import DownloadError, Hub

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
out, err = Console(), Console(stderr=True)

ModelArgument = Annotated[str, typer.Argument(help="tutor, a checkpoint folder, or a hub name such as org/name")]


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
    flags = ["--model", str(resolve(model, out)), "--port", str(port), "--host", host, *context.args]
    if "--served-model-name" not in flags:
        flags += ["--served-model-name", model]
    if nproc > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "deepseek_runtime.serve", *flags])
    from deepseek_runtime import serve as program

    program.leave(program.main([*flags, *([] if "--health-port" in flags else ["--health-port", "0"])]))


_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_FORWARD, add_help_option=False)
def generate(context: typer.Context) -> None:
    """Answer a prompt, or a file of prompts, without a server; also under torchrun. See `dsv3 generate --help`."""
    _generate(context.args)


app.command()(commands.chat)
app.command()(commands.bench)


def _generate(arguments: list[str]) -> None:
    from deepseek_runtime import generate as program
    from deepseek_runtime.serve import leave

    leave(program.main(arguments))


@app.command("download")
def fetch(
    name: Annotated[str, typer.Argument(help="hub name such as deepseek-ai/DeepSeek-V3-0324")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    endpoint: Annotated[str | None, typer.Option(help="Hub or mirror; default: HF_ENDPOINT.")] = None,
    destination: Annotated[Path | None, typer.Option(help="Folder; default: one in your cache.")] = None,
) -> None:
    """Download a checkpoint and verify the hash of every file."""
    folder = destination or cache_folder(name)
    order = Order(source=f"hf://{name}", revision=revision, destination=folder)
    receipt = download(order, Hub(endpoint=endpoint), out)
    out.print(f"{folder}: {receipt.files} files, {receipt.bytes / 1e9:.2f} GB, commit {receipt.commit}", soft_wrap=True)


@app.command()
def convert(
    source: ModelArgument,
    destination: Annotated[Path, typer.Argument(help="a folder that is empty or not there yet")],
    to: Annotated[str, typer.Option(help="The new form; fp8 is blocks of 128 × 128, as DeepSeek publishes.")] = "fp8",
) -> None:
    """Write a BF16 checkpoint's projections in FP8 to a new folder, a few rows in memory at a time."""
    from deepseek_runtime.weights.convert import convert as run

    if to != "fp8":
        raise StartupError(f"--to must be fp8, the only form that is written here, not {to!r}")
    folder = resolve(source, out)
    with bar(out, f"{source} to {to}") as report:
        done = run(folder, destination, report)
    size = f"{done.matrices} matrices in FP8, {done.nbytes / 1e9:.2f} GB"
    out.print(f"{destination}: {size}", highlight=False, soft_wrap=True)


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


def _shape(model: str) -> sizing.ModelShape:
    if known := sizing.known_shape(model):
        return known
    file = checkpoint_folder(model) / "config.json"
    if not file.is_file():
        raise StartupError(f"{model}: neither a known hub name nor a folder with config.json")
    return load_config(file.parent).shape


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
