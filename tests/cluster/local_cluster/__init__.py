"""A real Kubernetes on one Linux machine: compiled here, run in namespaces of its own, gone without a trace."""
