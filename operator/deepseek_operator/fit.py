"""Does the model fit? Judged before anything is made, from a known checkpoint's shapes and the devices' memory.

The arithmetic is `deepseek_runtime.sizing`, the runtime's own; this module only asks it the operator's question. What
is not known is said, not guessed: an unknown checkpoint or device is served without a verdict.
"""

from dataclasses import dataclass
from typing import Literal

from deepseek_operator import quantity
from deepseek_operator.api.v1alpha1 import AcceleratorSpec, Spec, Vendor
from deepseek_runtime import sizing

Verdict = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdict, the sentence that explains it, and the number of nodes that follows."""

    verdict: Verdict
    reason: str
    message: str
    nodes: int
    checkpoint_bytes: int | None = None
    weight_bytes_per_accelerator: int | None = None


def judge(spec: Spec, per_node: int) -> Fit:
    """Return whether a group of `nodes` × `per_node` processes holds the model, and the nodes to use."""
    shape = sizing.known_shape(spec.model.source.removeprefix("hf://"))
    memory = _device_bytes(spec.accelerator)
    nodes = spec.nodes or 1
    if shape is None:
        message = f"the sizes of {spec.model.source} are not known before its config.json is there"
        return Fit("Unknown", "UnknownCheckpoint", message, nodes)
    if memory is None:
        return Fit("Unknown", "UnknownMemory", _memory_advice(spec.accelerator), nodes, shape.checkpoint_bytes)
    layout = sizing.Layout(nodes, per_node, attention="tensor", split_dense=False)
    chosen = sizing.smallest_nodes(shape, layout, memory) if spec.nodes is None else None
    estimate = chosen or sizing.estimate(shape, layout, memory)
    if not estimate.fits:
        message = sizing.advise(shape, layout, memory)
        return Fit("False", "DoesNotFit", message, nodes, shape.checkpoint_bytes, estimate.weight_bytes)
    return Fit("True", "Fits", estimate.sentence, estimate.layout.nodes, shape.checkpoint_bytes, estimate.weight_bytes)


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
