"""Kubernetes operator for DeepSeek-V3: one custom resource in, one verified, multi-node serving endpoint out."""

__version__ = "0.1.0"
