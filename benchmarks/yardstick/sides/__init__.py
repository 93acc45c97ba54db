"""The engines by their names; the first is the one that the others are compared with."""

from benchmarks.yardstick.sides.hugging_face import HuggingFace
from benchmarks.yardstick.sides.llama import LlamaCpp
from benchmarks.yardstick.sides.ours import Ours
from benchmarks.yardstick.sides.side import Side
from benchmarks.yardstick.sides.vllm import Vllm

OURS = Ours()
OURS_FP8 = Ours(name="ours-fp8", title="ours, FP8 weights", fp8=True)
PEERS: dict[str, Side] = {side.name: side for side in (LlamaCpp(), HuggingFace(), Vllm())}
