"""What the proxy counts, and how Prometheus reads it.

Owns plain integers: the streaming path must not pay for labels and locks. Families are made when
somebody scrapes. The engines' own metrics are at /workers/NAME/metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

# (name, help, [(labels, value)])
Gauge = tuple[str, str, list[tuple[dict[str, str], float]]]


class Metrics:
    """`gauges` is asked at each scrape: live figures stay with their owners."""

    def __init__(self, gauges: Callable[[], list[Gauge]]) -> None:
        self._gauges = gauges
        self.requests: Counter[tuple[str, int]] = Counter()  # (path, status)
        self.routes: Counter[str] = Counter()  # split | whole
        self.num_chunks = 0
        self.ttft_counts = [0] * (len(TTFT_BUCKETS_S) + 1)
        self.ttft_sum_s = 0.0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def first_byte(self, seconds: float) -> None:
        """Time from a request's arrival to the head of its answer."""
        slot = sum(bound < seconds for bound in TTFT_BUCKETS_S)
        self.ttft_counts[slot] += 1
        self.ttft_sum_s += seconds

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("sluice_requests", "Answered requests.", labels=["path", "status"])
        for (path, status), count in self.requests.items():
            requests.add_metric([path, str(status)], count)
        routes = CounterMetricFamily("sluice_routes", "Requests by how they were served.", labels=["kind"])
        for kind, count in self.routes.items():
            routes.add_metric([kind], count)
        yield requests
        yield routes
        yield CounterMetricFamily("sluice_chunks", "Pieces of answers passed to clients.", value=self.num_chunks)
        yield self._ttft()
        for name, text, samples in self._gauges():
            labels = sorted({label for sample, _ in samples for label in sample})
            family = GaugeMetricFamily(name, text, labels=labels)
            for sample, value in samples:
                family.add_metric([sample[label] for label in labels], value)
            yield family

    def _ttft(self) -> Metric:
        buckets, total = [], 0
        for bound, count in zip((*map(str, TTFT_BUCKETS_S), "+Inf"), self.ttft_counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily("sluice_first_byte_seconds", "Arrival to the head of the answer.")
        family.add_metric([], buckets, sum_value=self.ttft_sum_s)
        return family
