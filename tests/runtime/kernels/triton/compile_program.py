"""Compiles every kernel for a GPU that need not be there, at DeepSeek-V3's widths: `compile_program.py cuda 90`.

Prints one JSON line a kernel: its name, and the bytes of shared memory that a block of it takes.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from deepseek_runtime.kernels.fp8 import Fp8Weight
from deepseek_runtime.kernels.interface import Expansion, Latents, SwiGLU
from deepseek_runtime.kernels.triton.hardware import Fp8Format, Hardware, amd_fp8
from deepseek_runtime.kernels.triton.kernels import TritonKernels
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed, Expanded

HIDDEN, WIDTH, EXPERTS, HEADS, LATENT, ROPE, NOPE = 7168, 2048, 2, 16, 512, 64, 128
BF16 = torch.bfloat16


class Driver:
    """What Triton asks of a device before it launches; nothing is ever launched."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


def compile_only(self: JITFunction, grid: tuple[int, ...]) -> Callable[..., None]:
    def launch(*arguments: Any, **options: Any) -> None:
        compiled = self.run(*arguments, grid=grid, warmup=True, **options)
        print(json.dumps([compiled.metadata.name, compiled.metadata.shared]), flush=True)

    return launch


def fp8(dtype: torch.dtype, *shape: int) -> Fp8Weight:
    blocks = [-(-size // 128) for size in shape[-2:]]
    return Fp8Weight(torch.zeros(shape, dtype=dtype), torch.zeros(*shape[:-2], *blocks), (128, 128))


def dense(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=BF16)


def exercise_matrices(kernels: TritonKernels, tokens: int, stored: torch.dtype) -> None:
    """Launch what multiplies weights."""
    x = dense(tokens, HIDDEN)
    kernels.linear(x, fp8(stored, 576, HIDDEN))
    gate, up, down = (fp8(stored, EXPERTS, *shape) for shape in ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)))
    slots = torch.zeros(tokens, 8, dtype=torch.int64)
    kernels.experts(x, slots, torch.zeros(tokens, 8), SwiGLU(gate, up, down))


def exercise_others(kernels: TritonKernels, tokens: int) -> None:
    """Launch everything else that a step of `tokens` decoding sequences does, and a prompt's attention."""
    x, rotations = dense(tokens, HIDDEN), torch.zeros(tokens, ROPE // 2, dtype=torch.complex64)
    kernels.add_rms_norm(x, x, dense(HIDDEN), 1e-6)
    kernels.rms_norm(x, dense(HIDDEN), 1e-6)
    router = RouterConfig("sigmoid", 256, 8, 8, 4, "top2_sum", True, True, 2.5)
    kernels.route(x, torch.zeros(256, HIDDEN), torch.zeros(256), router)
    q_nope, q_rope = dense(tokens, HEADS, NOPE), dense(tokens, HEADS, ROPE)
    cache, expansion = dense(256, LATENT + ROPE), Expansion(dense(HEADS, NOPE, LATENT), dense(HEADS, 128, LATENT), 0.1)
    kernels.rotate(q_rope, rotations)
    where = Latents(cache, torch.arange(tokens), rotations)
    kernels.write_latents(dense(tokens, LATENT + ROPE), dense(LATENT), 1e-6, where)
    single = torch.arange(tokens).unsqueeze(1)
    part = Absorbed(single, single + 1, torch.zeros(tokens, 4, dtype=torch.int64), 64, 64, covers_step=True)
    kernels.absorbed_attention(q_nope, q_rope, cache, part, expansion)
    kernels.expanded_attention(q_nope, q_rope, cache, Expanded(0, tokens, torch.arange(tokens)), expansion)


def hardware(backend: str, architecture: str) -> Hardware:
    if backend == "hip":
        dtype, stages = amd_fp8(architecture), 2
    else:
        dtype, stages = torch.float8_e4m3fn if int(architecture) >= 89 else None, 3
    return Hardware(None if dtype is None else Fp8Format(dtype, 224.0), units=132, stages=stages)


def main(backend: str, architecture: str) -> None:
    is_cuda = backend == "cuda"
    target = GPUTarget(backend, int(architecture) if is_cuda else architecture, 32 if is_cuda else 64)
    triton.runtime.driver.set_active(Driver(target))
    JITFunction.__getitem__ = compile_only
    device = hardware(backend, architecture)
    stored = device.fp8.dtype if device.fp8 else torch.float8_e4m3fn
    for tokens in (4, 128):
        exercise_matrices(TritonKernels(device), tokens, stored)
    exercise_others(TritonKernels(device), 4)
    TritonKernels(device, batch_invariant=True).linear(dense(4, HIDDEN), dense(576, HIDDEN))


if __name__ == "__main__":
    main(*sys.argv[1:])
