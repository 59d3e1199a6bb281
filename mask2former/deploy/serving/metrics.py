"""Figures for Prometheus. Every application has a registry of its own, so that several can live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

__all__ = ["METRICS_MEDIA_TYPE", "Metrics"]

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What the service counts and measures; labels have few values, whatever clients send."""

    def __init__(self, max_batch_size: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered.", "method", "path", "status")
        self.request_seconds = self._histogram("request_seconds", "From head to answer.", _SECONDS, "path")
        self.pending = Gauge("mask2former_pending_requests", "Accepted and not yet answered.", registry=self.registry)
        self.waiting_seconds = self._histogram("waiting_seconds", "A picture's time before its batch.", _SECONDS)
        self.batch_seconds = self._histogram("batch_seconds", "A batch's time in the model.", _SECONDS)
        self.batch_size = self._histogram("batch_size", "Pictures of a batch.", range(1, max_batch_size + 1))
        self.pictures = self._counter("pictures", "Pictures segmented.", "task", "output")

    def observe_batch(self, size: int, seconds: float) -> None:
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"mask2former_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: range | tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"mask2former_{name}", meaning, labels, buckets=tuple(buckets), registry=self.registry)
