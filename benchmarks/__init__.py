"""Timings of the runtime beside its peers. Never imported by the product, never a test."""
