"""What `python -m benchmarks.routing` can be asked for, and the requests that an asking stands for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.arguments import Count, Duration, chosen, numbers
from benchmarks.routing import dynamo
from launcher.twin.card import Card, card
from launcher.twin.replay import Replay
from launcher.twin.setup import Roles, Setup, equal_engines
from launcher.twin.traces import HOT, Request, Synthetic, coarse_step_s, jittered, part, read, synthetic
from proxy.routing.load_policies import SCORES
from proxy.spec import LatencyTargets, RoutingSpec

SHAPES = {"chats": Synthetic(), "hot": HOT}
POLICIES = "kv,least_loaded,round_robin,random,dynamo"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Times are the trace's own: at rate 2 an hour of it takes half an hour."""

    trace: str = ""  # a Mooncake .jsonl or an Azure .csv; nothing: chats made up from `trace_seed`
    trace_seed: int = 1
    shape: Literal["chats", "hot"] = "chats"  # of what is made up; hot: one long system prompt in every request
    start_s: float = 0.0  # of the part that is replayed
    length_s: Duration = 1e9
    workers: Count = 8
    roles: Roles = "whole"
    prefill_workers: Count = 4
    timing: Literal["additive", "mixed"] = "additive"
    policies: str = POLICIES  # also dynamo:SCALE:CREDIT:DECAY:WEIGHT, Dynamo's router at other settings
    dynamo_grid: bool = False  # all settings of a small grid as well
    baseline: str = "least_loaded"  # whose saturation the loads are parts of
    loads: str = "0.5,0.7,0.9"
    rate: float = 0.0  # instead of loads: this many times as fast as the trace
    seeds: Count = 5
    jitter_s: float = -1.0  # each arrival is up to this much later; below 0: the tick of the trace's clock, or 1 s
    ttft_s: Duration = 2.0  # targets, for the router and for goodput
    itl_s: Duration = 0.05
    saturations: bool = False  # also of the policies that are not the baseline
    live_speed: float = 0.0  # above 0: through a live proxy and workers, whose engines are so many times as fast
    processes: Count = 1
    output: str = "out/routing"

    @property
    def policy_names(self) -> list[str]:
        grid = [setting.name for setting in dynamo.GRID] if self.dynamo_grid else []
        return [*self.policies.split(","), *grid]

    @property
    def load_parts(self) -> list[float]:
        return numbers("loads", self.loads)

    @property
    def card(self) -> Card:
        return card(self.timing)

    def setup(self, policy: str) -> Setup:
        routing = RoutingSpec(
            policy=policy if dynamo.setting_of(policy) is None else dynamo.POLICY,
            targets=LatencyTargets(ttft_s=self.ttft_s, itl_s=self.itl_s),
        )
        return equal_engines(self.card, self.roles, self.workers, self.prefill_workers, routing)

    def replay(self, policy: str, requests: Sequence[Request]) -> Replay:
        """In virtual time Dynamo's router is asked with its settings."""
        scores = dynamo.scores(dynamo.setting_of(policy) or dynamo.Setting())
        return Replay(self.setup(policy), requests, {**SCORES, dynamo.POLICY: scores})


def check(options: Options) -> None:
    """Before anything is replayed. Raises BadArgument."""
    for key, given in (("policies", options.policies), ("baseline", options.baseline)):
        names = [dynamo.POLICY if dynamo.setting_of(name) else name for name in given.split(",")]
        chosen(key, ",".join(names), POLICIES.split(","))
    numbers("loads", options.loads)


@lru_cache(maxsize=1)
def base_requests(options: Options) -> list[Request]:
    requests = read(Path(options.trace)) if options.trace else synthetic(SHAPES[options.shape], options.trace_seed)
    return part(requests, options.start_s, options.length_s)


def requests_of(options: Options, rate: float, seed: int) -> list[Request]:
    base = base_requests(options)
    jitter_s = options.jitter_s if options.jitter_s >= 0 else coarse_step_s(base) or 1.0
    return jittered(base, jitter_s, rate, seed)
