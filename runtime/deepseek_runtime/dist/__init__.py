"""How ranks find each other, exchange tensors, and notice each other's death. Knows nothing of the model."""
