"""Answers without a server: `dsv3 generate` and `dsv3 chat`, alone or on every rank that torchrun starts."""
