"""Failures that a person can act on."""


class BenchmarkError(Exception):
    """One sentence that says what is wrong and what to do."""
