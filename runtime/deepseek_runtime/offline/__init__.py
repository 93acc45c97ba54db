"""Answers without a server: `dsv3 generate`, alone or on every rank that torchrun starts."""
