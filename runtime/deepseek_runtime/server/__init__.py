"""The OpenAI-compatible HTTP surface of rank 0. Knows text and the engine's door, nothing of tensors."""
