"""The command line: `tests/cluster/cluster VERB`."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from . import host, lifecycle, namespaces, programs
from .errors import ClusterError
from .images.recipes import build_images
from .layout import OPERATOR_IMAGE, RUNTIME_IMAGE, Layout
from .oci import Library

_IMAGES = {"operator": OPERATOR_IMAGE, "runtime": RUNTIME_IMAGE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for what the person can put right (one sentence on stderr)."""
    options = _parser().parse_args(arguments)
    layout = Layout.of_user()
    try:
        _run(layout, options)
        sys.stdout.flush()
    except ClusterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except BrokenPipeError:
        # The reader (head, grep -q) has seen enough; nothing may be written at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cluster", description="A real Kubernetes on this machine, in namespaces of its own."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="bring it up; build what is missing; harmless if it is up")
    up.add_argument("--nodes", type=int, default=2, choices=(1, 2), help="default 2")
    up.add_argument("--gpus", type=int, default=0, metavar="N", help="pretend N nvidia.com/gpu on each node")
    down = verbs.add_parser("down", help="end it and leave nothing but the cache")
    down.add_argument("--purge", action="store_true", help="delete the cached images too")
    verbs.add_parser("status", help="say what runs and what is cached")
    verbs.add_parser("kubeconfig", help="print the kubeconfig's path; it works on this machine, inside and outside")
    load = verbs.add_parser("load-image", help="give an image to every node")
    load.add_argument("image", metavar="TAR|NAME", help="an archive, or the name of an image built here")
    run = verbs.add_parser("exec", help="run a command in the cluster's network, e.g. exec -- kubectl get nodes")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD…")
    build = verbs.add_parser("build", help="compile programs only")
    build.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(programs.ALL_PROGRAMS)}")
    images = verbs.add_parser(
        "images", help="make the project's images and give them to the nodes of a running cluster"
    )
    images.add_argument("names", nargs="*", choices=[*_IMAGES, []], metavar="NAME", help=f"of {', '.join(_IMAGES)}")
    logs = verbs.add_parser("logs", help="print the paths of all logs, or the end of one")
    logs.add_argument("component", nargs="?")
    return parser


def _run(layout: Layout, options: argparse.Namespace) -> None:
    match options.verb:
        case "up":
            lifecycle.up(layout, options.nodes, options.gpus)
        case "down":
            lifecycle.down(layout, purge=options.purge)
        case "status":
            _print_status(layout)
        case "kubeconfig":
            lifecycle.require_running(layout)
            print(layout.kubeconfig)
        case "load-image":
            lifecycle.load_image(layout, options.image)
        case "exec":
            lifecycle.run_inside(layout, _command(options.command))
        case "build":
            _build(layout, options.names)
        case "images":
            _make_images(layout, options.names)
        case "logs":
            _print_logs(layout, options.component)


def _command(words: list[str]) -> list[str]:
    command = words[1:] if words[:1] == ["--"] else words
    if not command:
        raise ClusterError("Say what to run: tests/cluster/cluster exec -- kubectl get nodes.")
    return command


def _build(layout: Layout, names: list[str]) -> None:
    unknown = set(names) - set(programs.ALL_PROGRAMS)
    if unknown:
        raise ClusterError(f"No such program: {', '.join(unknown)}; there are {', '.join(programs.ALL_PROGRAMS)}.")
    chosen = tuple(programs.ALL_PROGRAMS[name] for name in names)
    programs.build(layout, chosen or programs.CLUSTER_PROGRAMS)
    print(f"Built: {layout.bin}")


def _make_images(layout: Layout, names: list[str]) -> None:
    references = [_IMAGES[name] for name in names or _IMAGES]
    for image in build_images(layout, references):
        print(f"{image.reference}: {image.size / 1e6:.0f} MB, {image.manifest.digest}")
    if namespaces.running(layout):
        for reference in references:
            lifecycle.load_image(layout, reference)


def _print_status(layout: Layout) -> None:
    current = namespaces.running(layout)
    if current is None:
        print("No cluster is up.")
    else:
        print(f"Up: {current.nodes} node(s), {current.gpus} GPUs each, first process {current.init}.")
        for node in lifecycle.node_objects(layout) or ():
            print(f"  {node['metadata']['name']}: {'Ready' if lifecycle.is_ready(node) else 'not ready'}")
        print(f"Kubeconfig: {layout.kubeconfig}")
    for program in programs.ALL_PROGRAMS.values():
        print(f"{program.title}: {'built' if programs.is_built(layout, program) else 'not built'}")
    library = Library(layout.images)
    for image in filter(None, map(library.find, library.references())):
        print(f"Image {image.reference}: {image.size / 1e6:.0f} MB")
    print(f"Cache: {layout.cache}, {shutil.disk_usage(host.existing(layout.cache)).free / 1e9:.0f} GB free")


def _print_logs(layout: Layout, component: str | None) -> None:
    logs = {path.stem: path for path in sorted(layout.logs.glob("*.log"))}
    if component is None:
        print("\n".join(map(str, logs.values())) or "There are no logs: no cluster was started.")
    elif component in logs:
        print("\n".join(logs[component].read_text(errors="replace").splitlines()[-50:]))
    else:
        raise ClusterError(f"No log of {component}; there are {', '.join(logs) or 'none'}.")
