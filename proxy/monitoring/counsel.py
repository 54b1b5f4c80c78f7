"""The planner's word as Prometheus reads it.

Pure.
"""

from __future__ import annotations

from proxy.monitoring.snapshot import Gauge
from workers.controller_messages import SetCaps


def counsel_gauges(counsel: SetCaps) -> list[Gauge]:
    """Nothing where nobody plans."""
    ahead = [
        ({"kind": one.kind, "minutes": str(one.minutes), "bound": bound}, value)
        for one in counsel.demand
        for bound, value in (("low", one.low), ("mean", one.mean), ("high", one.high))
    ]
    drift = [({"towards": counsel.drift}, 1.0)] if counsel.drift else []
    wanted = [({"pool": pool}, float(number)) for pool, number in counsel.wanted]
    hours: list[tuple[dict[str, str], float]] = [({}, counsel.gpu_hours)] if wanted else []
    told: list[Gauge] = [
        ("sluice_planner_demand_tokens_per_second", "Forecast, by kind and minutes ahead.", ahead),
        ("sluice_planner_drift", "1 while the mix of demand goes there.", drift),
        ("sluice_planner_wanted_workers", "Workers that the planner asks for.", wanted),
        ("sluice_planner_gpu_hours", "Of all workers since the run's start.", hours),
    ]
    return [gauge for gauge in told if gauge[2]]
