"""Convert a checkpoint in a process of its own and print the peak memory above that before: `SOURCE DESTINATION`."""

import sys
from pathlib import Path

from deepseek_runtime.weights.convert import convert


def memory(field: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, not at the imports
    before = memory("VmRSS")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
    print(memory("VmHWM") - before)
