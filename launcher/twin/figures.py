"""From what happened to each request to the figures of one replay."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from launcher.twin.percentiles import percentile
from launcher.twin.records import Record, Replayed

GROWTH_OF = 0.9  # the percentile of TTFT that may grow
MAX_WAIT = 0.05  # of the time in which requests arrive: who waits longer is not kept up with
STEADY_FROM = 0.25  # of the requests; before that caches and queues fill
POINTS = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def figures_of(replayed: Replayed, ttft_s: float, itl_s: float) -> dict[str, float]:
    records = replayed.records
    ttft = [record.ttft_s for record in records]
    itl = [gap for record in records if (gap := record.itl_s) is not None]
    good = sum(record.ttft_s <= ttft_s and (record.itl_s or 0.0) <= itl_s for record in records)
    decisions = [decision * 1e6 for decision in replayed.decision_s]
    return {
        "ttft_mean_s": statistics.fmean(ttft),
        **{f"ttft_{name}_s": percentile(ttft, point) for name, point in POINTS},
        "itl_mean_ms": 1e3 * statistics.fmean(itl) if itl else 0.0,
        **{f"itl_{name}_ms": 1e3 * percentile(itl, point) for name, point in POINTS},
        "hits": hits(records, replayed.block_size),
        "good": good / len(records),
        "goodput_per_s": good / span_s(records),
        "split": sum(record.prefill is not None for record in records) / len(records),
        "imbalance": imbalance(records[int(len(records) * STEADY_FROM) :], replayed.workers),
        "preemptions": replayed.num_preemptions,
        "decision_p50_us": percentile(decisions, 0.5),
        "decision_p99_us": percentile(decisions, 0.99),
    }


def span_s(records: Sequence[Record]) -> float:
    """Of the arrivals: goodput is a part of what was offered, whenever the last answer ends."""
    return max(1e-9, records[-1].request.at_s - records[0].request.at_s)


def hits(records: Sequence[Record], block_size: int) -> float:
    """The part of all prompts' full blocks that was cached where the prompt was computed."""
    num_asked = sum(len(record.request.chain) for record in records)
    return sum(record.num_cached // block_size for record in records) / num_asked if num_asked else 0.0


def imbalance(records: Sequence[Record], workers: Sequence[str]) -> float:
    """Requests in progress, averaged over time: those of the busiest worker to the mean of all that had any."""
    busy_s = dict.fromkeys(workers, 0.0)
    for record in records:
        if record.prefill is None:
            busy_s[record.decode] += record.end_s - record.request.at_s
        else:
            busy_s[record.prefill] += record.first_s - record.request.at_s
            busy_s[record.decode] += record.end_s - record.first_s
    return max(busy_s.values()) / statistics.fmean(busy_s.values())


def growth(records: Sequence[Record]) -> float:
    """p90 of TTFT in the second half of the requests to that in the first; endless where so many wait too long.

    Far too fast, both halves only queue, the second for about twice as long as the first, whatever the rate.
    """
    half = len(records) // 2
    first, second = (percentile([r.ttft_s for r in part], GROWTH_OF) for part in (records[:half], records[half:]))
    return float("inf") if second > MAX_WAIT * span_s(records) else second / max(first, 1e-9)
