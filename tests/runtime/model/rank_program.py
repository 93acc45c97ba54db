"""One rank of a real gloo group, under torchrun: `rank_program.py FOLDER OUT TOKEN…`. Writes OUT/<rank>.pt.

Runs the tokens in a prefill, a chunk and single steps, and drafts with the MTP layer over the prefill.
"""

import sys
from pathlib import Path

import torch

from deepseek_runtime.dist.init import join_group
from deepseek_runtime.weights.load import load_model
from stepping import batch_of, block_table, logits_in_chunks, new_cache


def main() -> None:
    folder, out, *words = sys.argv[1:]
    tokens = [int(word) for word in words]
    group = join_group("cpu")
    model = load_model(Path(folder), group, device=torch.device("cpu"), dtype=torch.float32)
    group.barrier("loaded", timeout=60)
    logits = logits_in_chunks(model, tokens, [40, 20])
    cache = new_cache(model, len(tokens))
    batch = batch_of([(tokens[:-1], 0, block_table(cache, len(tokens)))])
    drafts, _ = model.draft_logits(model.forward(batch, cache), torch.tensor(tokens[1:]), batch, cache)
    torch.save({"logits": logits, "drafts": drafts}, Path(out, f"{group.rank}.pt"))
    group.close()


if __name__ == "__main__":
    main()
