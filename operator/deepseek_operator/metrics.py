"""Prometheus metrics of the operator; the reference is docs/operator.md."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server


class Metrics:
    """All metrics, in a registry of their own so that two operators in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "dsv3_operator_reconciles", "Passes over one object.", ["result"], registry=self.registry
        )
        self.seconds = Histogram(
            "dsv3_operator_reconcile_seconds",
            "Time of one pass.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30),
            registry=self.registry,
        )
        self.writes = Counter(
            "dsv3_operator_writes", "Writes to the API server.", ["verb", "kind"], registry=self.registry
        )
        self.objects = Gauge(
            "dsv3_operator_objects", "DeepSeekV3Deployments that the operator looks after.", registry=self.registry
        )

    def count_write(self, verb: str, kind: str) -> None:
        """Count one write."""
        self.writes.labels(verb, kind).inc()

    def serve(self, port: int) -> None:
        """Serve the registry at `/metrics` from a thread that ends with the process."""
        start_http_server(port, registry=self.registry)
