"""The layers above Debian: dependencies from wheels, then the project itself, both under `/usr/local`."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from ..errors import ClusterError
from ..host import find, search_path
from ..layout import Layout
from .cpu_torch import make_cpu_only

REPOSITORY = Path(__file__).resolve().parents[4]
KERNELS = Path("deepseek_runtime/kernels/cpu")
# NVIDIA's libraries and the compiler for its GPUs; see cpu_torch.py for how torch does without.
_GPU_WHEELS = re.compile(r"(nvidia-|cuda-|triton)")
# Headers for compiling extensions, tools for making protobuf code, the tests of other projects.
_UNUSED = (
    "torch/include",
    "torch/share",
    "torch/bin/protoc*",
    *(f"{package}/**/tests" for package in ("numpy", "sympy", "networkx", "mpmath")),
    "**/*.a",
    ".lock",
    # Where and when it was built: makes equal layers differ.
    "*.dist-info/direct_url.json",
    "*.dist-info/uv_cache.json",
)


class Wheels:
    """Installs for Debian's Python `version` with uv. `TORCH_INDEX_URL` may name an index of other torch wheels."""

    def __init__(self, layout: Layout, version: str) -> None:
        self._layout = layout
        self._version = version
        url = os.environ.get("TORCH_INDEX_URL")
        self.index = ["--extra-index-url", url, "--index-strategy", "unsafe-best-match"] if url else []

    def add_dependencies(self, root: Path, extra: str) -> None:
        """Install what the project and its `extra` depend on."""
        site = self._site(root)
        requirements = root.with_name("requirements.txt")
        constraints = REPOSITORY / "constraints.txt"
        flags = ["--extra", extra, *(["--constraints", str(constraints)] if constraints.exists() else []), *self.index]
        self._uv(
            "compile", "--quiet", *flags, "--no-annotate", "-o", str(requirements), str(REPOSITORY / "pyproject.toml")
        )
        pins = [line for line in requirements.read_text().splitlines() if not _GPU_WHEELS.match(line)]
        requirements.write_text("\n".join(pins))
        self._uv("install", "--quiet", "--no-deps", *self.index, "--target", str(site), "-r", str(requirements))
        if (site / "torch").exists():
            make_cpu_only(site / "torch")
            _strip(site / "torch" / "lib")
        self._finish(root, site)

    def add_project(self, root: Path) -> None:
        """Install the project itself, built as a wheel."""
        site = self._site(root)
        self._uv("install", "--quiet", "--no-deps", "--target", str(site), str(REPOSITORY))
        self._finish(root, site)

    def add_kernels(self, root: Path) -> None:
        """Compile the runtime's kernels here, to where it looks for them: the image has no compiler."""
        library = self._site(root) / KERNELS / "dsv3_kernels.so"
        build = REPOSITORY / "runtime" / KERNELS / "build.py"
        _run([f"/usr/bin/python{self._version}", build, "--output", library], {"PATH": search_path()})

    def compile(self, root: Path, folder: Path) -> None:
        """Write byte code beside the sources; unchecked, because layers keep no file times and pods cannot write."""
        flags: list[str | Path] = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/"]
        command = [f"/usr/bin/python{self._version}", "-m", "compileall", *flags, folder]
        # Some wheels bring files for later versions of Python, which do not compile here and are never imported.
        _run(command, {"PYTHONHASHSEED": "0"}, check=False)

    def _site(self, root: Path) -> Path:
        site = root / "usr/local/lib" / f"python{self._version}" / "dist-packages"
        site.mkdir(parents=True)
        return site

    def _finish(self, root: Path, site: Path) -> None:
        """Move the commands to where PATH finds them, with Debian's Python; drop what no pod uses; compile the rest."""
        for pattern in _UNUSED:
            for path in list(site.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        commands = root / "usr/local/bin"
        if (site / "bin").exists():
            (site / "bin").rename(commands)
        for command in commands.iterdir() if commands.exists() else ():
            _, _, body = command.read_bytes().partition(b"\n")
            command.unlink()
            command.write_bytes(b"#!/usr/bin/python3\n" + body)
            command.chmod(0o755)
        self.compile(root, site)

    def _uv(self, verb: str, *arguments: str) -> None:
        interpreter = f"/usr/bin/python{self._version}"
        _run([self._uv_path(), "pip", verb, "--python", interpreter, *arguments], {"UV_NO_PROGRESS": "1"})

    def _uv_path(self) -> str:
        """uv from PATH, or installed once into a virtual environment of our own."""
        environment = self._layout.tools / "uv"
        own = environment / "bin" / "uv"
        if own.exists():
            return str(own)
        # A version manager's shim on PATH may refuse outside of its own folders.
        on_path = find("uv")
        if on_path and subprocess.run([on_path, "--version"], capture_output=True, check=False).returncode == 0:
            return on_path
        _run([f"/usr/bin/python{self._version}", "-m", "venv", environment], {})
        _run([environment / "bin" / "pip", "install", "--quiet", "uv"], {})
        return str(own)


def _strip(folder: Path) -> None:
    """Drop the symbol tables that only debuggers read: 100 MB of torch's libraries."""
    for library in folder.glob("lib*.so"):
        stripped = library.with_suffix(".stripped")
        _run(["strip", "--strip-unneeded", "-o", stripped, library], {})
        stripped.replace(library)


def _run(command: list[str | Path], environment: dict[str, str], *, check: bool = True) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env={**own, **environment}, cwd="/", capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        words = " ".join(map(str, command[:3]))
        raise ClusterError(f"{words} failed while an image was made: {(done.stderr or done.stdout).strip()[-800:]}")
