"""What one process of the proxy shows of itself, and the whole that several make.

Pure. A worker says the same of itself to every process, so of that one word is enough; what the processes do
themselves adds up. Only those that take connections have a say in whether the proxy is ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec

from proxy.monitoring.journal import MAX_ENTRIES, Entry
from proxy.monitoring.totals import Totals

# (name, help, [(labels, value)])
Gauge = tuple[str, str, list[tuple[dict[str, str], float]]]

SUMS = ("queued", "queued_tokens", "open_requests", "open_tickets")
SAID = ("sluice_worker_", "sluice_planner_")  # by others than the proxy, to each of its processes
SAME_NEWS_S = 5.0  # the same news of two processes, so close together, is one event


class Snapshot(msgspec.Struct):
    """`fleet` is what /fleet says."""

    fleet: dict[str, Any]
    totals: Totals
    gauges: list[Gauge]
    journal: list[Entry]
    gpus_per_node: int
    controller_silent_s: float | None


def merged(own: Snapshot, others: Sequence[Snapshot], past: Totals) -> Snapshot:
    """`own` is of the process that was asked, `past` of those that have ended."""
    every = [own, *others]
    totals = Totals()
    for one in (past, *(snapshot.totals for snapshot in every)):
        totals.include(one)
    silences = [one.controller_silent_s for one in every if one.controller_silent_s is not None]
    return Snapshot(
        fleet=_fleet([one.fleet for one in every]),
        totals=totals,
        gauges=_gauges([one.gauges for one in every]),
        journal=_journal(chain.from_iterable(one.journal for one in every)),
        gpus_per_node=max(one.gpus_per_node for one in every),
        controller_silent_s=min(silences, default=None),
    )


def _fleet(fleets: list[dict[str, Any]]) -> dict[str, Any]:
    taking = [fleet for fleet in fleets if fleet["processes"][0]["takes_connections"]] or fleets[:1]
    return {
        **fleets[0],
        "ready": all(fleet["ready"] for fleet in taking),
        "serving": all(fleet["serving"] for fleet in taking),
        **{name: sum(fleet[name] for fleet in fleets) for name in SUMS},
        "workers": _workers(fleets),
        "jobs": max((fleet["jobs"] for fleet in fleets), key=len),
        "pairs": _pairs(taking),
        "refusals": list(dict.fromkeys(chain.from_iterable(fleet["refusals"] for fleet in fleets))),
        "processes": sorted(chain.from_iterable(fleet["processes"] for fleet in fleets), key=lambda one: one["pid"]),
    }


def _workers(fleets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the processes have given a worker adds up."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for worker in chain.from_iterable(fleet["workers"] for fleet in fleets):
        key = (worker["worker"], worker["generation"])
        if key in found:
            found[key] = {
                **found[key],
                **_summed(found[key], worker, ("prefill_tokens", "decodes")),
                "pressure": {
                    **found[key]["pressure"],
                    **_summed(
                        found[key]["pressure"], worker["pressure"], ("queue_s", "computed_s", "decodes", "held_tokens")
                    ),
                },
            }
        else:
            found[key] = worker
    return list(found.values())


def _summed(one: dict[str, Any], other: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: one[name] + other[name] for name in names}


def _pairs(fleets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Proven when it is so for all; else with what the last proof failed of."""
    found: dict[tuple[str | None, str], dict[str, Any]] = {}
    for pair in chain.from_iterable(fleet["pairs"] for fleet in fleets):
        same = found.setdefault((pair["prefill"], pair["decode"]), pair)
        if not pair["proven"]:
            found[pair["prefill"], pair["decode"]] = {**pair, "fault": pair["fault"] or same["fault"]}
    return list(found.values())


def _gauges(every: list[list[Gauge]]) -> list[Gauge]:
    """What hosts and planner have said is the same everywhere; all others add up."""
    found: dict[str, tuple[str, dict[tuple[tuple[str, str], ...], float]]] = {}
    for name, text, samples in chain.from_iterable(every):
        values = found.setdefault(name, (text, {}))[1]
        for labels, value in samples:
            key = tuple(sorted(labels.items()))
            values[key] = values.get(key, value) if name.startswith(SAID) else values.get(key, 0.0) + value
    return [
        (name, text, [(dict(key), value) for key, value in values.items()]) for name, (text, values) in found.items()
    ]


def _journal(entries: Iterable[Entry]) -> list[Entry]:
    told: dict[tuple[str, int, str], float] = {}
    kept = []
    for entry in sorted(entries, key=lambda entry: entry.at):
        news = (entry.worker, entry.generation, entry.text)
        if entry.at - told.get(news, float("-inf")) > SAME_NEWS_S:
            kept.append(entry)
        told[news] = entry.at
    return kept[-MAX_ENTRIES:]
