"""Every kernel compiles for GPUs that need not be here, at DeepSeek-V3's widths, and fits their shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compile_program.py")
RUNTIME = Path(__file__).parents[4] / "runtime"
KIB = 1024


@pytest.mark.parametrize(
    ("backend", "architecture", "shared"),
    [("cuda", "80", 163 * KIB), ("cuda", "90", 227 * KIB), ("hip", "gfx942", 64 * KIB)],
)
def test_kernels_compile(backend: str, architecture: str, shared: int, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "PYTHONPATH": str(RUNTIME),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), backend, architecture],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    taken = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {"_linear", "_gate_and_up", "_down_kernel", "_attend", "_merge", "_choose", "_rms_norm"} <= {
        name for name, _ in taken
    }
    assert max(size for _, size in taken) <= shared
