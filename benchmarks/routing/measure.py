"""The experiment of `benchmarks.routing`: which replays are made, and what of them is kept.

Owns the order of the replays and where they are computed; each is a value of (options, policy, rate, seed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import msgspec

from benchmarks import report
from benchmarks.report import say
from benchmarks.routing import bound
from benchmarks.routing.options import Options, base_requests, requests_of
from benchmarks.routing.saturation import first_rate, saturation
from launcher.twin.figures import figures_of, growth
from launcher.twin.traces import shared_hits

P = ParamSpec("P")
T = TypeVar("T")
Case = tuple[str, float]  # policy and load


class Measured(msgspec.Struct, frozen=True):
    cases: dict[Case, dict[str, float]]  # medians over seeds
    rates: dict[float, float]  # by load: how many times as fast as the trace
    saturations: dict[str, float]
    caches: dict[str, float]  # what one cache of all engines' size would find, and one without an end
    bound_s: float  # mean TTFT that no router can beat


class _Here(Executor):
    """Computes at once and in this thread: so a signal ends it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@contextmanager
def executor(num_processes: int) -> Iterator[Executor]:
    """Where replays are computed. Whoever leaves early waits for those under way, not for all in the queue.

    Not by fork: Python calls hooks around it, and an interruption that comes in one of these is lost.
    """
    pool = _Here() if num_processes == 1 else ProcessPoolExecutor(num_processes, get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def one(options: Options, policy: str, rate: float, seed: int) -> dict[str, float]:
    replayed = options.replay(policy, requests_of(options, rate, seed)).run()
    found = figures_of(replayed, options.ttft_s, options.itl_s)
    say(f"{policy} at {rate:g}, {options.roles}: TTFT {found['ttft_mean_s']:.3f} s, {found['good']:.3f} good")
    return found


def saturation_of(options: Options, policy: str) -> float:
    def growth_at(rate: float) -> float:
        found = growth(options.replay(policy, requests_of(options, rate, 0)).run().records)
        say(f"{policy}: at rate {rate:.3f} p90 TTFT grows {found:.2f} times")
        return found

    return saturation(growth_at, first_rate(base_requests(options), options.card, options.workers))


def measure(options: Options, pool: Executor) -> Measured:
    saturations = {} if options.rate else _saturations(options, pool)
    rates = {load: load * saturations[options.baseline] for load in options.load_parts if not options.rate}
    rates = rates or {1.0: options.rate}
    caches = _caches(options)
    cases = {case: report.medians(runs) for case, runs in _runs(options, rates, pool).items()}
    for case in cases.values():
        case |= {f"hits_to_{name}": case["hits"] / value if value else 1.0 for name, value in caches.items()}
    bound_s = bound.ttft_mean_s(base_requests(options), options.card)
    return Measured(cases, rates, saturations, caches, bound_s)


def _saturations(options: Options, pool: Executor) -> dict[str, float]:
    names = dict.fromkeys([options.baseline, *(options.policy_names if options.saturations else [])])
    asked = {name: pool.submit(saturation_of, options, name) for name in names}
    return {name: future.result() for name, future in asked.items()}


def _caches(options: Options) -> dict[str, float]:
    base = base_requests(options)
    num_blocks = options.workers * options.card.num_blocks
    return {"shared": shared_hits(base, num_blocks), "infinite": shared_hits(base, None)}


def _runs(options: Options, rates: Mapping[float, float], pool: Executor) -> dict[Case, list[dict[str, float]]]:
    """All seeds of each policy at each load."""
    asked: dict[Case, list[Future[dict[str, float]]]] = {
        (policy, load): [pool.submit(one, options, policy, rate, seed) for seed in range(options.seeds)]
        for load, rate in rates.items()
        for policy in options.policy_names
    }
    return {case: [future.result() for future in futures] for case, futures in asked.items()}
