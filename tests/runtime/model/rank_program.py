"""One rank of a real gloo group, under torchrun: `rank_program.py FOLDER OUT ATTENTION TOKEN…`. Writes OUT/<rank>.pt.

Goes every way through the tokens, and drafts with the MTP layer over one prefill. With data attention each rank has a
prompt of its own: the tokens turned by its number.
"""

import sys
from pathlib import Path

import torch

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.weights.load import load_model
from stepping import batch_of, block_table, new_cache
from ways import WAYS


def main() -> None:
    folder, out, attention, *words = sys.argv[1:]
    group = join_group("cpu")
    turn = group.rank if attention == "data" else 0
    tokens = [int(word) for word in words[turn:] + words[:turn]]
    device = torch.device("cpu")
    model = load_model(Path(folder), group, device=device, dtype=torch.float32, attention=attention)
    group.barrier("loaded", timeout=60)
    results = {name: way(model, tokens) for name, way in WAYS.items()}
    cache = new_cache(model, len(tokens))
    batch = batch_of([(tokens[:-1], 0, block_table(cache, len(tokens)))])
    results["drafts"], _ = model.draft_logits(model.forward(batch, cache), torch.tensor(tokens[1:]), batch, cache)
    torch.save(results, Path(out, f"{group.rank}.pt"))
    group.close()


if __name__ == "__main__":
    main()
