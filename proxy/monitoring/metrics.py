"""How Prometheus reads what the proxy counts. The engines' own metrics are at /workers/NAME/metrics.

Pure. Owns the names: families are made when somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from proxy.monitoring.histogram import Histogram
from proxy.monitoring.snapshot import Gauge
from proxy.monitoring.totals import Totals


class Scrape:
    """One answer to Prometheus."""

    def __init__(self, totals: Totals, gauges: Sequence[Gauge]) -> None:
        self._totals = totals
        self._gauges = gauges

    def render(self) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        traffic = self._totals.traffic
        status = {(path, str(status)): count for (path, status), count in self._totals.requests.items()}
        yield _counter("sluice_requests", "Answered requests.", ("path", "status"), status)
        pair = ("prefill", "decode")
        yield _counter("sluice_routes", "Good answers to users by worker; no prefill: whole.", pair, traffic.routes)
        yield _counter(
            "sluice_handed_over_tokens", "Prompt tokens whose KV went to a decode worker.", pair, traffic.handed_over
        )
        why = ("policy", "why")
        yield _counter("sluice_decisions", "Good answers to users by what decided.", why, traffic.decisions)
        for name, text, total in (
            ("sluice_prompt_tokens", "Of answered requests.", traffic.prompt_tokens),
            (
                "sluice_cached_prompt_tokens",
                "Of these, cached where they were computed.",
                traffic.cached_tokens,
            ),
            ("sluice_uncached_prompt_tokens", "Of these, computed.", traffic.prompt_tokens - traffic.cached_tokens),
            ("sluice_output_tokens", "Of answered requests.", traffic.output_tokens),
            ("sluice_chunks", "Pieces of answers passed to clients.", self._totals.num_chunks),
            ("sluice_resumed_streams", "Streams taken up by another worker.", self._totals.num_resumed),
            ("sluice_digest_resyncs", "Snapshots of caches asked for anew.", self._totals.num_resyncs),
        ):
            yield CounterMetricFamily(name, text, value=total)
        yield _histogram("sluice_ttft_seconds", "Streams: arrival to the head of the answer.", traffic.ttft)
        yield _histogram("sluice_ttft_error_seconds", "Streams: TTFT off its prediction.", traffic.ttft_error)
        yield _histogram("sluice_itl_seconds", "Streams: mean time between tokens of an answer.", traffic.itl)
        yield _histogram("sluice_request_seconds", "Arrival to the end of a good answer.", traffic.duration)
        for name, text, samples in self._gauges:
            labels = sorted({label for sample, _ in samples for label in sample})
            family = GaugeMetricFamily(name, text, labels=labels)
            for sample, value in samples:
                family.add_metric([sample[label] for label in labels], value)
            yield family


def _counter(name: str, text: str, labels: tuple[str, str], counts: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, text)
    family.add_metric([], list(histogram.octaves()), sum_value=histogram.sum_s)
    return family
