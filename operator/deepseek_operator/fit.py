"""Does the model fit? Judged before anything is made, from a known checkpoint's shapes and the devices' memory.

The arithmetic is `deepseek_runtime.sizing`, the runtime's own; this module only asks it the operator's question. What
is not known is said, not guessed: an unknown checkpoint or device is served without a verdict.
"""

from dataclasses import dataclass
from typing import Literal

from deepseek_operator import quantity
from deepseek_operator.api.v1alpha1 import AcceleratorSpec, Attention, Spec, Vendor
from deepseek_runtime import sizing

Verdict = Literal["True", "False", "Unknown"]

# In the order of preference; the native engine holds the dense parts whole on every rank.
_ATTENTIONS: dict[Attention, tuple[sizing.Attention, ...]] = {
    Attention.AUTO: ("tensor", "data"),
    Attention.TENSOR: ("tensor",),
    Attention.DATA: ("data",),
}


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdict, the sentence that explains it, and the layout that follows: nodes, and attention where it is known.

    Where `attention` is None the runtime chooses.
    """

    verdict: Verdict
    reason: str
    message: str
    nodes: int
    attention: sizing.Attention | None = None
    checkpoint_bytes: int | None = None
    weight_bytes_per_accelerator: int | None = None


def judge(spec: Spec, per_node: int) -> Fit:
    """Return whether a group of `nodes` × `per_node` processes holds the model, and the layout to use."""
    shape, memory = known_shape(spec), _device_bytes(spec.accelerator)
    layouts = _layouts(spec, per_node)
    first = layouts[0]
    asked = None if spec.parallelism.attention is Attention.AUTO else first.attention
    if shape is None:
        message = f"the sizes of {spec.model.source} are not known before its config.json is there"
        return Fit("Unknown", "UnknownCheckpoint", message, first.nodes, asked)
    if memory is None:
        message = _memory_advice(spec.accelerator)
        return Fit("Unknown", "UnknownMemory", message, first.nodes, asked, shape.checkpoint_bytes)
    best = _best(shape, layouts, memory, any_nodes=spec.nodes is None)
    if best is None:
        needed = sizing.weight_bytes(shape, first)
        message = sizing.advise(shape, first, memory)
        return Fit("False", "DoesNotFit", message, first.nodes, asked, shape.checkpoint_bytes, needed)
    chosen = best.layout
    return Fit("True", "Fits", best.sentence, chosen.nodes, chosen.attention, shape.checkpoint_bytes, best.weight_bytes)


def known_shape(spec: Spec) -> sizing.ModelShape | None:
    """Return the shape of the model that a spec names, or None where only its config.json could tell it."""
    return sizing.known_shape(spec.model.source.removeprefix("hf://"))


def _layouts(spec: Spec, per_node: int) -> list[sizing.Layout]:
    """Return the layouts that the spec allows, with its number of nodes or one."""
    return [
        sizing.Layout(
            nodes=spec.nodes or 1,
            per_node=per_node,
            attention=attention,
            redundant_experts=spec.parallelism.redundant_experts,
            split_dense=False,
        )
        for attention in _ATTENTIONS[spec.parallelism.attention]
    ]


def _best(
    shape: sizing.ModelShape, layouts: list[sizing.Layout], memory: int, *, any_nodes: bool
) -> sizing.Estimate | None:
    """Return the layout that fits with the fewest nodes, the first of equals; None where none does."""
    weigh = sizing.smallest_nodes if any_nodes else sizing.estimate
    tried = [weigh(shape, layout, memory) for layout in layouts]
    return min((found for found in tried if found and found.fits), key=lambda found: found.layout.nodes, default=None)


def _device_bytes(accelerator: AcceleratorSpec) -> int | None:
    if accelerator.memory:
        return quantity.parse_bytes(accelerator.memory)
    device = sizing.accelerator(accelerator.product) if accelerator.product else None
    return device.memory_bytes if device else None


def _memory_advice(accelerator: AcceleratorSpec) -> str:
    """Return why the memory is unknown, and which field tells it."""
    if accelerator.vendor is Vendor.CPU:
        return "the memory of one process is not given; spec.accelerator.memory tells it"
    if accelerator.product is None:
        return "neither spec.accelerator.product nor spec.accelerator.memory is given"
    listed = ", ".join(sorted(sizing.ACCELERATORS))
    return f"spec.accelerator.product {accelerator.product} is not one of {listed}; spec.accelerator.memory tells it"
