"""A PyTorch runtime that serves models of the DeepSeek-V3 architecture over one or many accelerators."""
