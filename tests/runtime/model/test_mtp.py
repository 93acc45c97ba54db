"""The MTP layer drafts what the reference's does, from the embedding first and the state after the final norm."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek_runtime.model.model import DeepSeekV3Model
from stepping import batch_of, block_table, new_cache
from tiny_checkpoint import v2_lite_config


@pytest.fixture(scope="module")
def reference_drafts(v3_folder: Path, tokens: list[int]) -> Tensor:
    """transformers' logits for the token after next at every position but the last."""
    from transformers import DeepseekV3ForCausalLM
    from transformers.modeling_layers import MtpModel

    with pytest.MonkeyPatch.context() as patch:
        # transformers finds the layer only at number 61, that of the real model.
        patch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.3.*"])
        main = DeepseekV3ForCausalLM.from_pretrained(v3_folder, dtype=torch.float32).eval()
        mtp = MtpModel.from_pretrained(main).eval()
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        hidden = main.model(ids).last_hidden_state[:, :-1]
        positions = torch.arange(1, len(tokens)).unsqueeze(0)
        drafted = mtp.forward_layer(0, hidden, positions, None, input_ids=ids[:, 1:])
        logits: Tensor = main.lm_head(drafted)[0]
    return logits


@pytest.mark.parametrize("chunks", [[69], [40, 7, 1, 1, 20]], ids=str)
def test_drafts_equal_the_reference(
    chunks: list[int], v3_model: DeepSeekV3Model, tokens: list[int], reference_drafts: Tensor
) -> None:
    cache = new_cache(v3_model, 70)
    table = block_table(cache, 70)
    got, start = [], 0
    for size in chunks:
        batch = batch_of([(tokens[start : start + size], start, table)])
        hidden = v3_model.forward(batch, cache)
        shifted = torch.tensor(tokens[start + 1 : start + size + 1])
        got.append(v3_model.draft_logits(hidden, shifted, batch, cache)[0])
        start += size
    torch.testing.assert_close(torch.cat(got), reference_drafts, atol=1e-3, rtol=0)


def test_drafting_leaves_the_main_layers_cache_alone(v3_model: DeepSeekV3Model, tokens: list[int]) -> None:
    cache = new_cache(v3_model, 16)
    batch = batch_of([(tokens[:9], 0, [0])])
    hidden = v3_model.forward(batch, cache)
    before = cache.values.clone()
    logits, state = v3_model.draft_logits(hidden, torch.tensor(tokens[1:10]), batch, cache)
    assert torch.equal(cache.values[:-1], before[:-1])
    assert cache.layer(cache.num_layers - 1)[:9].abs().sum(dim=-1).gt(0).all()
    torch.testing.assert_close(logits, v3_model.logits(state))


def test_a_model_without_the_layer_says_so(
    make_checkpoint: Callable[..., Path], load: Callable[[Path], DeepSeekV3Model]
) -> None:
    model = load(make_checkpoint(v2_lite_config()))
    cache = new_cache(model, 16)
    batch = batch_of([([5], 0, [0])])
    hidden = model.forward(batch, cache)
    with pytest.raises(ValueError, match="no MTP layer"):
        model.draft_logits(hidden, torch.tensor([6]), batch, cache)
