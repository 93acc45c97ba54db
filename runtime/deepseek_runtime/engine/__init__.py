"""Continuous batching: one scheduler on rank 0 decides, every rank runs the identical step."""
