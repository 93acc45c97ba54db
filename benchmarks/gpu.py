"""Layers of DeepSeek-V3 at their real widths on one GPU: time against the bandwidth roofline, kernels against twins.

    PYTHONPATH=runtime python -m benchmarks.gpu [--context 4096] [--layers N]

Weights are random and made on the device, in FP8 blocks, for as many MoE layers as fit. A decode step must read every
weight that it visits and every cached row once: these bytes, over the bandwidth that a plain copy reaches in the same
run, are the roofline. The section of RESULTS.md between the marks is replaced. Without a GPU: one sentence, exit 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_runtime.dist.group import Group
from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.kernels.interface import Expansion, Kernels, Latents, SwiGLU
from deepseek_runtime.kernels.reference import TorchKernels
from deepseek_runtime.model.batch import StepBatch
from deepseek_runtime.model.cache import LatentCache
from deepseek_runtime.model.config import ModelConfig, parse_config
from deepseek_runtime.model.graphs import DecodeGraphs, Shape, gpu_capture
from deepseek_runtime.model.model import DeepSeekV3Model
from deepseek_runtime.model.parallelize import Shard
from deepseek_runtime.model.sharding import Parameter, Precision, parameters
from deepseek_runtime.model.step import Absorbed
from deepseek_runtime.weights.fp8 import to_fnuz

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
BATCHES = (1, 8, 64)
PROMPT = 2048
BLOCK_SIZE = 64
RUNS = 20
MEMORY_SHARE = 0.8
"""Of the free memory for weights; the rest is cache, activations and graphs."""

V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 1024,  # neither embedding nor head is measured
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 0,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}


# What must be read ---------------------------------------------------------------------------------------------------


def v3_layers(layers: int) -> ModelConfig:
    """DeepSeek-V3 with so many MoE layers and nothing else."""
    return parse_config(V3 | {"num_hidden_layers": layers, "num_nextn_predict_layers": 0})


def stored_bytes(parameter: Parameter, block: tuple[int, int]) -> int:
    """Bytes of a tensor in memory: FP8 with a float32 scale per block, bf16, or float32."""
    size = torch.Size(parameter.shape).numel()
    if parameter.precision is Precision.FLOAT32:
        return 4 * size
    if parameter.precision is Precision.COMPUTE:
        return 2 * size
    rows, columns = parameter.shape
    return size + 4 * -(-rows // block[0]) * -(-columns // block[1])


def visited_experts(experts: int, chosen: int, tokens: int) -> float:
    """Different experts that so many tokens are expected to visit, each choosing at random."""
    return experts * (1 - (1 - chosen / experts) ** tokens)


def layer_bytes(config: ModelConfig, tokens: int, context: int) -> float:
    """Bytes that one MoE layer must read to decode one token of each of `tokens` sequences of `context` tokens."""
    assert config.fp8_block is not None, "the layers are stored in FP8"
    layer = [parameter for parameter in parameters(config) if parameter.name.startswith("model.layers.0.")]
    always = sum(stored_bytes(parameter, config.fp8_block) for parameter in layer if parameter.expert is None)
    expert = sum(stored_bytes(parameter, config.fp8_block) for parameter in layer if parameter.expert == 0)
    visited = visited_experts(config.router.experts, config.router.chosen, tokens)
    return always + visited * expert + tokens * context * config.cache_width * 2


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of all weights in memory."""
    assert config.fp8_block is not None, "the layers are stored in FP8"
    return sum(stored_bytes(parameter, config.fp8_block) for parameter in parameters(config))


def layers_that_fit(free: float) -> int:
    """MoE layers of DeepSeek-V3 whose weights fit into so many bytes."""
    one = weight_bytes(v3_layers(1))
    layer = weight_bytes(v3_layers(2)) - one
    return max(0, 1 + int((free - one) // layer))


# The model -----------------------------------------------------------------------------------------------------------


def random_fp8(shape: tuple[int, ...], block: tuple[int, int], device: torch.device, *, fnuz: bool) -> Fp8Weight:
    """Values below 2 in size, scaled so that a layer keeps the size of what goes through it."""
    # Without the exponent's top bit no byte is a NaN.
    values = torch.empty(shape, dtype=torch.uint8, device=device).random_(0, 256).bitwise_and_(0xBF)
    blocks = [-(-size // edge) for size, edge in zip(shape[-2:], block, strict=True)]
    scale = torch.full((*shape[:-2], *blocks), 2 * shape[-1] ** -0.5, device=device)
    typed = values.view(torch.float8_e4m3fn)
    return Fp8Weight(*(to_fnuz(typed, scale) if fnuz else (typed, scale)), block)


def random_weights(config: ModelConfig, device: torch.device, *, fnuz: bool) -> dict[str, Weight]:
    """Every tensor of the model under the name that the runtime gives it, routed experts stacked."""
    assert config.fp8_block is not None, "the layers are stored in FP8"
    weights: dict[str, Weight] = {}
    for parameter in parameters(config):
        if parameter.expert:
            continue
        shape = parameter.shape if parameter.expert is None else (config.router.experts, *parameter.shape)
        if parameter.precision is Precision.AS_STORED:
            weights[parameter.stack] = random_fp8(shape, config.fp8_block, device, fnuz=fnuz)
        elif len(shape) == 1:
            weights[parameter.stack] = torch.ones(shape, dtype=_dtype(parameter), device=device)
        else:
            noise = torch.randn(shape, dtype=_dtype(parameter), device=device)
            weights[parameter.stack] = noise * shape[-1] ** -0.5
    return weights


def _dtype(parameter: Parameter) -> torch.dtype:
    return torch.float32 if parameter.precision is Precision.FLOAT32 else torch.bfloat16


def decode_batch(sequences: int, context: int, device: torch.device) -> StepBatch:
    """One token of each of so many sequences, each with `context` tokens in all."""
    blocks = -(-context // BLOCK_SIZE)
    return StepBatch(
        token_ids=torch.arange(sequences, device=device),
        positions=torch.full((sequences,), context - 1, device=device),
        query_lens=[1] * sequences,
        context_lens=[context - 1] * sequences,
        block_tables=[list(range(b * blocks, (b + 1) * blocks)) for b in range(sequences)],
    )


def prompt_batch(tokens: int, device: torch.device) -> StepBatch:
    """One prompt with nothing cached."""
    blocks = list(range(-(-tokens // BLOCK_SIZE)))
    return StepBatch(
        torch.arange(tokens, device=device) % 1000, torch.arange(tokens, device=device), [tokens], [0], [blocks]
    )


# Time ----------------------------------------------------------------------------------------------------------------


def milliseconds(work: Callable[[], object]) -> float:
    """The median time of `RUNS` runs on the device, after two that compile and warm up."""
    for _ in range(2):
        work()
    marks = [_mark(work) for _ in range(RUNS)]
    torch.cuda.synchronize()
    return statistics.median(float(begin.elapsed_time(end)) for begin, end in marks)


def _mark(work: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Queue the work between two time stamps of the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    return begin, end


def bandwidth(device: torch.device, size: int = 2**30) -> float:
    """Bytes per second that a plain copy reads and writes together."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (milliseconds(lambda: target.copy_(source)) / 1e3)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: milliseconds of a layer eagerly and as a graph, and the roofline's."""

    name: str
    eager: float
    graph: float
    roofline: float

    def __str__(self) -> str:
        share = self.roofline / self.graph
        return f"| {self.name} | {self.eager:.3f} | {self.graph:.3f} | {self.roofline:.3f} | {share:.0%} |"


def decode_rows(model: DeepSeekV3Model, cache: LatentCache, context: int, bytes_per_second: float) -> Iterator[Row]:
    """Decoding at each batch size, per layer."""
    layers = model.config.num_layers
    most_blocks = -(-context // BLOCK_SIZE)
    for sequences in BATCHES:
        batch = decode_batch(sequences, context, model.device)
        graphs = DecodeGraphs(model, cache, most_blocks, scratch_block=cache.num_blocks - 1)
        graphs.capture([Shape(sequences, 1)], gpu_capture())
        yield Row(
            f"decode, batch {sequences}",
            milliseconds(partial(model.forward, batch, cache)) / layers,
            milliseconds(partial(graphs.forward, batch, cache)) / layers,
            layer_bytes(model.config, sequences, context) / bytes_per_second * 1e3,
        )


Operation = Callable[[Kernels], object]


def operations(config: ModelConfig, weights: dict[str, Weight], tokens: int, context: int) -> dict[str, Operation]:
    """Every operation of a decode step of `tokens` sequences, as a function of the kernels."""
    prefix, device = "model.layers.0", torch.device("cuda")

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device)

    def swiglu(name: str) -> SwiGLU:
        return SwiGLU(*(weights[f"{prefix}.mlp.{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))

    x, heads, latent = noise(tokens, config.hidden_size), config.num_heads, config.kv_lora_rank
    norm, gate = noise(config.hidden_size), weights[f"{prefix}.mlp.gate.weight"]
    assert isinstance(gate, Tensor)
    bias, router = torch.zeros(config.router.experts, device=device), config.router
    slots, shares = TorchKernels().route(x, gate, bias, router)
    q_nope, q_rope = noise(tokens, heads, config.qk_nope_head_dim), noise(tokens, heads, config.qk_rope_head_dim)
    blocks = -(-context // BLOCK_SIZE)
    cache = noise(tokens * blocks * BLOCK_SIZE, config.cache_width)
    tables = torch.arange(tokens * blocks, device=device).view(tokens, blocks)
    rows = torch.arange(tokens, device=device).unsqueeze(1)
    part = Absorbed(rows, torch.full_like(rows, context), tables, BLOCK_SIZE, context, covers_step=True)
    expansion = Expansion(noise(heads, config.qk_nope_head_dim, latent), noise(heads, config.v_head_dim, latent), 0.1)
    where = Latents(
        cache, rows.flatten(), torch.ones(tokens, config.qk_rope_head_dim // 2, dtype=torch.complex64, device=device)
    )
    o, joined = weights[f"{prefix}.self_attn.o_proj.weight"], noise(tokens, config.cache_width)
    mixed = noise(tokens, heads * config.v_head_dim)
    return {
        "linear, o_proj": lambda kernels: kernels.linear(mixed, o),
        "experts": lambda kernels: kernels.experts(x, slots, shares, swiglu("experts")),
        "swiglu, shared expert": lambda kernels: kernels.swiglu(x, swiglu("shared_experts")),
        "absorbed attention": lambda kernels: kernels.absorbed_attention(q_nope, q_rope, cache, part, expansion),
        "residual and norm": lambda kernels: kernels.add_rms_norm(x, x, norm, 1e-6),
        "router": lambda kernels: kernels.route(x, gate, bias, router),
        "rotate queries": lambda kernels: kernels.rotate(q_rope, where.rotations_T),
        "cache write": lambda kernels: kernels.write_latents(joined, norm[:latent], 1e-6, where),
    }


def kernel_table(config: ModelConfig, weights: dict[str, Weight], kernels: Kernels, context: int) -> Iterator[str]:
    """Each operation at each batch size: ours, the twin, and how many times faster ours is."""
    yield "| operation | batch | Triton ms | torch ms | faster |\n|---|---|---|---|---|"
    twin = TorchKernels()
    for tokens in BATCHES:
        for name, operation in operations(config, weights, tokens, context).items():
            ours, theirs = (milliseconds(partial(operation, side)) for side in (kernels, twin))
            yield f"| {name} | {tokens} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.1f} × |"


# The report ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def report(context: int, wanted_layers: int | None) -> str:
    """Measure, and say it in Markdown."""
    from deepseek_runtime.kernels.triton.hardware import Hardware
    from deepseek_runtime.kernels.triton.kernels import TritonKernels

    device = torch.device("cuda", torch.cuda.current_device())
    free, _ = torch.cuda.mem_get_info(device)
    layers = wanted_layers or layers_that_fit(free * MEMORY_SHARE)
    if not layers:
        needed = weight_bytes(v3_layers(1)) / 1e9
        raise SystemExit(f"{free / 1e9:.0f} GB are free, and one layer of DeepSeek-V3 takes {needed:.0f}")
    config, hardware = v3_layers(layers), Hardware.of(device)
    weights = random_weights(config, device, fnuz=hardware.fp8 is not None and hardware.fp8.is_fnuz)
    kernels = TritonKernels(hardware)
    model = DeepSeekV3Model(Shard.of(config, 0, 1), weights, Group(device), kernels)
    blocks = max(BATCHES) * -(-context // BLOCK_SIZE) + 1
    cache = LatentCache.create(config, blocks, BLOCK_SIZE, device, torch.bfloat16)
    speed = bandwidth(device)
    prompt = milliseconds(lambda: model.forward(prompt_batch(PROMPT, device), cache)) / layers
    rows = list(decode_rows(model, cache, context, speed))
    heading = (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {layers} MoE layers of DeepSeek-V3 in FP8, "
        f"context {context}; a copy reaches {speed / 1e12:.2f} TB/s. Times are per layer, medians of {RUNS} runs."
    )
    throughput = f"{prompt:.2f} ms a layer, {PROMPT / prompt * 1e3:,.0f} tokens/s through one layer"
    return "\n".join(
        [
            heading,
            "",
            "| step | eager ms | graph ms | roofline ms | of the roofline |\n|---|---|---|---|---|",
            *map(str, rows),
            "",
            f"Prefill of {PROMPT} tokens: {throughput}.",
            "",
            *kernel_table(config, weights, kernels, context),
        ]
    )


def insert(results: str, section: str) -> str:
    """The page with the section between its marks, or behind everything else."""
    block = f"{BEGIN}\n## Layers of DeepSeek-V3 on a GPU\n\n`python -m benchmarks.gpu`\n\n{section}\n{END}\n"
    if BEGIN not in results:
        return f"{results.rstrip()}\n\n{block}"
    before, _, rest = results.partition(BEGIN)
    return before + block + rest.partition(f"{END}\n")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--context", type=int, default=4096, help="tokens of each decoding sequence")
    parser.add_argument("--layers", type=int, help="MoE layers; default: as many as fit")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write(
            "benchmarks.gpu: torch sees no CUDA or ROCm device here, and this benchmark measures nothing else\n"
        )
        return 2
    section = report(arguments.context, arguments.layers)
    sys.stdout.write(section + "\n")
    RESULTS.write_text(insert(RESULTS.read_text(encoding="utf-8"), section), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
