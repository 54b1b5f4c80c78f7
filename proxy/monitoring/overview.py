"""What the page at / draws, as one JSON value: the fleet, what flows, the last hour, and how old each word is.

Pure. Owns the shape of /overview, which is /fleet and more.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from proxy.errors import BadRequest
from proxy.monitoring.history import INTERVAL_S, SPAN_S, history_json
from proxy.monitoring.snapshot import Snapshot
from proxy.spec import ProxySpec


def overview_json(shown: Snapshot, spec: ProxySpec, *, since: int, unix: float) -> dict[str, Any]:
    """History from `since` on. Totals are of this proxy since its start."""
    traffic = shown.totals.traffic
    return {
        **shown.fleet,
        "time": unix,
        "proxy": spec.proxy,
        "models": spec.models,
        "wanted": spec.workers,
        "gpus_per_node": shown.gpus_per_node,
        "controller_silent_s": shown.controller_silent_s,
        "routes": [
            {
                "prefill": prefill,
                "decode": decode,
                "answers": count,
                "tokens": traffic.handed_over.get((prefill, decode), 0),
            }
            for (prefill, decode), count in traffic.routes.items()
        ],
        "prompt_tokens": traffic.prompt_tokens,
        "output_tokens": traffic.output_tokens,
        "history": {
            "interval_s": INTERVAL_S,
            "span_s": SPAN_S,
            "intervals": history_json(traffic.history.since(since, unix)),
        },
        "journal": shown.journal,
    }


def since_of(query: bytes) -> int:
    """`since=UNIX_TIME`; without it all of the last hour. Raises BadRequest."""
    values = parse_qs(query.decode("latin-1")).get("since", ["0"])
    if len(values) != 1 or not values[0].isdecimal() or len(values[0]) > 12:
        raise BadRequest("since must be a unix time in whole seconds", param="since")
    return int(values[0])
