"""Run as a program: llama.cpp's own converter on a checkpoint whose tokenizer it does not know.

python -m benchmarks.yardstick.peers.gguf LLAMA_CPP_SOURCES CHECKPOINT OUT.gguf bf16
"""

import importlib
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Convert. The converter names pre-tokenizers by a hash of what they do to a text; ours is none of those."""
    sources, checkpoint, target, kind = sys.argv[1:]
    sys.path[:0] = [sources, str(Path(sources) / "gguf-py")]
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda *_: "deepseek-v3"
    program = Path(sources) / "convert_hf_to_gguf.py"
    sys.argv = [str(program), checkpoint, "--outfile", target, "--outtype", kind]
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main()
