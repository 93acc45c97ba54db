"""Failures that a person can act on."""


class ClusterError(Exception):
    """One sentence that says what is wrong and what to do; the command prints it and exits with 2."""
