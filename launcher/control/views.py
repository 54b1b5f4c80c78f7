"""One view of the fleet out of what the proxy's processes tell, each for itself.

Pure. What one of them does not see yet is not there yet: the run is ready when all say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import msgspec

from workers.agent import lifecycle
from workers.controller_messages import FleetView, WorkerView


def merged(views: Iterable[FleetView]) -> FleetView | None:
    """None: nobody tells anything."""
    views = list(views)
    if len(views) < 2:
        return views[0] if views else None
    missing = dict.fromkeys(chain.from_iterable(view.missing_pairs for view in views))
    proven = dict.fromkeys(chain.from_iterable(view.proven_pairs for view in views))
    return FleetView(
        workers=_workers(views),
        ready=all(view.ready for view in views),
        proven_pairs=tuple(pair for pair in proven if pair not in missing),
        missing_pairs=tuple(missing),
        refusals=tuple(dict.fromkeys(chain.from_iterable(view.refusals for view in views))),
        faults=tuple(dict.fromkeys(chain.from_iterable(view.faults for view in views))),
    )


def sees_as_much(view: FleetView, other: FleetView | None) -> bool:
    """Whoever serves in the other one's eyes does in this one's; None: nobody is left to be measured by."""
    if other is None:
        return view.ready
    return _serving(other) <= _serving(view) and other.ready <= view.ready


def _serving(view: FleetView) -> set[tuple[str, int]]:
    return {(seen.worker, seen.generation) for seen in view.workers if seen.phase == lifecycle.READY and seen.proven}


def _workers(views: list[FleetView]) -> tuple[WorkerView, ...]:
    """A worker says the same of itself to all; its load is the hosts' own count, told a moment apart."""
    seen: dict[tuple[str, int], WorkerView] = {}
    for worker in chain.from_iterable(view.workers for view in views):
        key = (worker.worker, worker.generation)
        first = seen.setdefault(key, worker)
        if first.proven and not worker.proven:
            seen[key] = msgspec.structs.replace(first, proven=False)
    return tuple(seen.values())
