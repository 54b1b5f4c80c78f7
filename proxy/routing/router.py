"""Which workers serve a request: the run's policy, or the request's own, chooses among those that may.

Pure but for the random numbers it is given: reads the fleet and the index, changes neither. The answer carries its
reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Protocol

from proxy.fleet.fleet import Fleet
from proxy.fleet.worker import Pair
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.demand import Demand, Reason, Route, estimated_tokens
from proxy.routing.load_policies import SCORES, SEE_THE_CACHE, ByScore, Scores
from proxy.routing.time_policy import POLICY as KV
from proxy.routing.time_policy import ByTime
from proxy.spec import RoutingSpec

__all__ = ["POLICIES", "Demand", "Reason", "Route", "Router", "estimated_tokens"]

POLICIES = frozenset({KV, *SCORES})


class Policy(Protocol):
    def place(self, fleet: Fleet, index: PrefixIndex, demand: Demand, now: float, waited_s: float) -> Route | None:
        """None: nothing can take it now, or what will take it soon is better; it waits."""


class Router:
    """Raises ValueError on an unknown policy, naming the known ones. Benchmarks bring scores of their own."""

    def __init__(self, spec: RoutingSpec, random: Random, scores: Mapping[str, Scores] = SCORES) -> None:
        if spec.policy not in POLICIES:
            raise ValueError(f"unknown routing.policy {spec.policy!r}; known: {', '.join(sorted(POLICIES))}")
        self._default = spec.policy
        self._policies: dict[str, Policy] = {name: ByScore(name, scores[name], spec, random) for name in SCORES}
        self._policies[KV] = ByTime(spec)

    @staticmethod
    def wants_chain(policy: str) -> bool:
        """It looks at what is cached where; the others need not know a prompt's chain."""
        return policy == KV or policy in SEE_THE_CACHE

    def route(
        self, fleet: Fleet, index: PrefixIndex, demand: Demand, now: float, waited_s: float = 0.0
    ) -> Route | None:
        """None: it waits, as it has for `waited_s`."""
        if demand.forced is not None:
            return self._forced(fleet, demand, demand.forced)
        return self._policies[demand.policy or self._default].place(fleet, index, demand, now, waited_s)

    @staticmethod
    def _forced(fleet: Fleet, demand: Demand, pair: Pair) -> Route | None:
        prefill = None if pair[0] is None else fleet.workers.get(pair[0])
        decode = fleet.workers.get(pair[1])
        if decode is None or not decode.up or (pair[0] is not None and (prefill is None or not prefill.up)):
            return None
        return Route(prefill, decode, Reason("forced", "it must be this one", 0, demand.num_tokens))
