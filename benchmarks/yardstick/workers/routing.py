"""How many experts a step really touches: transformers' routers over the very tokens that a timed run wrote."""

import torch
from torch import Tensor, nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from benchmarks.yardstick.workers.hugging_face import load
from benchmarks.yardstick.workers.protocol import answer, read_task
from benchmarks.yardstick.workload import CONTEXT


class Choices:
    """Collects what the routers of all layers choose in one forward pass: [tokens, K] a layer."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, DeepseekV3TopkRouter):
                module.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> None:
        self.layers.append(output[-1])


@torch.inference_mode()
def touched(model: nn.Module, choices: Choices, sequences: list[list[int]]) -> float:
    """Different experts a step of all sequences together: summed over the layers, on average over the steps."""
    length = min(map(len, sequences))
    tokens = torch.tensor([sequence[:length] for sequence in sequences])
    choices.layers.clear()
    model(tokens, use_cache=False, logits_to_keep=1)
    steps = range(CONTEXT, length)
    chosen = [layer.view(len(sequences), length, -1) for layer in choices.layers]
    counts = [len(set(layer[:, step].flatten().tolist())) for layer in chosen for step in steps]
    return sum(counts) / len(steps)


def main() -> None:
    """Count for each batch size."""
    task = read_task()
    model = load(task["checkpoint"], torch.bfloat16)
    choices = Choices(model)
    answer({batch: touched(model, choices, sequences) for batch, sequences in task["written"].items()})


if __name__ == "__main__":
    main()
