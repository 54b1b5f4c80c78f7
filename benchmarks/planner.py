"""What moving roles and workers is worth: `python -m benchmarks.planner [key=value ...]`.

Prompts that are long with short answers, then short with long answers, then as at first, on the same engines in virtual
time. Goodput of the planner beside that of the router alone, of each fixed split, and of an oracle that knows the
phases and takes the best split in each. Then pools that grow and shrink, in virtual time (`planner_sizes`) and on a
real Slurm (`planner_slurm`), and moves of roles on live engines (`planner_live`). Owns the traffic, the four and what
is printed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count, Duration, chosen
from benchmarks.command import command
from benchmarks.planner_live import Live, measure_live
from benchmarks.planner_recovery import recoveries
from benchmarks.planner_sizes import measure_sizes
from benchmarks.planner_slurm import measure_slurm
from benchmarks.report import say
from launcher.planner.roles import Looked, Role, Roles, Sight
from launcher.twin.card import card
from launcher.twin.records import Record
from launcher.twin.replay import Look, Replay
from launcher.twin.setup import MAX_MODEL_LEN, equal_engines
from launcher.twin.traces import BLOCK_SIZE, Request, own_chain
from proxy.fleet.fleet import Fleet
from proxy.flights.flights import Flights
from proxy.monitoring.view import pressure_json
from proxy.spec import LatencyTargets, PoolCaps, RoutingSpec

PHASES = (0, 1, 0)  # which rate, prompts and answers


class Options(Live, frozen=True, kw_only=True):
    rows: str = (
        "roles,sizes"  # and live, which takes minutes, and slurm_ramp, a quarter of an hour on a Slurm of its own
    )
    phase_s: Duration = 40.0
    workers: Count = 8
    timings: str = "additive,mixed"
    loads: str = "50/40,65/50,75/60"  # requests per second, prefill-heavy and decode-heavy
    prompts: str = "3000/600"  # medians of tokens
    answers: str = "20/700"
    ttft_s: Duration = 2.0
    itl_s: Duration = 0.025
    splits: str = "2,4,6,7"  # prefill workers: fixed, or the oracle's to choose from
    output: str = "out/planner"


def pair(text: str) -> tuple[float, float]:
    first, second = text.split("/")
    return float(first), float(second)


def traffic(options: Options, load: str) -> list[Request]:
    rng, requests = random.Random(options.seed), list[Request]()
    for phase, which in enumerate(PHASES):
        at_s, end_s = phase * options.phase_s, (phase + 1) * options.phase_s
        prompt, answer = pair(options.prompts)[which], pair(options.answers)[which]
        while (at_s := at_s + rng.expovariate(pair(load)[which])) < end_s:
            num_prompt = min(MAX_MODEL_LEN // 4, max(16, round(prompt * rng.lognormvariate(0.0, 0.8))))
            num_output = max(1, round(answer * rng.lognormvariate(0.0, 0.7)))
            requests.append(Request(at_s, num_prompt, num_output, own_chain(len(requests), num_prompt, BLOCK_SIZE)))
    return requests


# ---------------------------------------------------------------- who moves roles


def caps(max_prefill_tokens: int, max_decodes: int) -> PoolCaps:
    return PoolCaps(max_prefill_tokens=max_prefill_tokens, max_decodes=max_decodes)


def planner(core: Roles, max_decodes: int) -> Look:
    both, clear = caps(MAX_MODEL_LEN, max_decodes), caps(0, max_decodes)

    def look(fleet: Fleet, flights: Flights, now: float) -> dict[str, PoolCaps] | None:
        sights = [msgspec.convert(pressure_json(worker, now), Sight) for worker in fleet.workers.values()]
        waiting = sum(flight.demand.num_tokens for flight in flights.queue)
        moved = core.apply(Looked(sights, waiting), now)
        return {name: clear if role is Role.DECODE else both for name, role in core.roles.items()} if moved else None

    return look


def known(options: Options, outer: int, inner: int, max_decodes: int) -> Look:
    """So many prefill workers in the outer phases, and in the one between."""

    def look(fleet: Fleet, flights: Flights, now: float) -> dict[str, PoolCaps]:
        number = inner if options.phase_s <= now < 2 * options.phase_s else outer
        prefill, decode = caps(MAX_MODEL_LEN, 0), caps(0, max_decodes)
        return {key[0]: prefill if n < number else decode for n, key in enumerate(fleet.workers)}

    return look


# ---------------------------------------------------------------- figures


def good_of(options: Options, records: Sequence[Record]) -> list[int]:
    """Answers within both targets, by the phase in which they were asked for."""
    counts = [0] * len(PHASES)
    for record in records:
        if record.ttft_s <= options.ttft_s and (record.itl_s or 0.0) <= options.itl_s:
            counts[phase_of(options, record.request)] += 1
    return counts


def phase_of(options: Options, request: Request) -> int:
    return min(len(PHASES) - 1, int(request.at_s // options.phase_s))


def measure(options: Options, timing: str, load: str) -> dict[str, float]:
    requests, engine = traffic(options, load), card(timing)
    routing = RoutingSpec(policy="kv", targets=LatencyTargets(ttft_s=options.ttft_s, itl_s=options.itl_s))
    setup = equal_engines(engine, "adaptive", options.workers, options.workers // 2, routing)

    def records_of(name: str, look: Look | None) -> Sequence[Record]:
        records = Replay(setup, requests, look=look).run().records
        say(f"{timing} {load} {name}: good {good_of(options, records)} of {len(records)}")
        return records

    def best_in(phase: int) -> int:
        """Alone: with the backlog of the phase before, another one would look best."""
        asked = [request for request in requests if phase_of(options, request) == phase]

        def good(number: int) -> int:
            look = known(options, number, number, engine.max_num_seqs)
            return sum(good_of(options, Replay(setup, asked, look=look).run().records))

        return max(splits, key=good)

    splits = [int(split) for split in options.splits.split(",")]
    fixed = {n: good_of(options, records_of(f"{n} fixed", known(options, n, n, engine.max_num_seqs))) for n in splits}
    outer, inner = best_in(0), best_in(1)
    oracle = records_of("oracle", known(options, outer, inner, engine.max_num_seqs))
    alone = records_of("router alone", None)
    core = Roles(routing.targets)
    ours = records_of("planner", planner(core, engine.max_num_seqs))
    goods = {
        "fixed": max(sum(good) for good in fixed.values()),
        "alone": sum(good_of(options, alone)),
        "oracle": sum(good_of(options, oracle)),
    }
    good = sum(good_of(options, ours))
    after = {
        f"change{number}.{name}.{figure}": seconds
        for name, records in {"planner": ours, "oracle": oracle, "alone": alone}.items()
        for number, found in enumerate(recoveries(records, options.phase_s, len(PHASES), routing.targets), 1)
        for figure, seconds in found._asdict().items()
    }
    return {
        "good": good / len(requests),
        **{f"to_{name}": good / max(1, other) for name, other in goods.items()},
        **after,
    }


def measure_roles(options: Options) -> dict[str, float]:
    found = {
        (timing, load): measure(options, timing, load)
        for timing in options.timings.split(",")
        for load in options.loads.split(",")
    }
    groups: dict[str, list[str]] = {}
    for name in next(iter(found.values())):
        groups.setdefault(name.partition(".")[0] if "." in name else "", []).append(name)
    for group, names in groups.items():
        header = [group, *(name.removeprefix(f"{group}.") for name in names)]
        rows = [[f"{timing} {load}", *(f"{row[name]:.2f}" for name in names)] for (timing, load), row in found.items()]
        print(report.table(header, rows))
    return {f"{timing}.{load}.{name}": v for (timing, load), row in found.items() for name, v in row.items()}


ROWS: dict[str, Callable[[Options], dict[str, float]]] = {
    "roles": measure_roles,
    "sizes": measure_sizes,
    "live": measure_live,
    "slurm_ramp": measure_slurm,
}


def run(options: Options) -> None:
    names = chosen("rows", options.rows, ROWS)
    found = {name: ROWS[name](options) for name in names}
    figures = {name: value for row in found.values() for name, value in row.items()}
    shown = [
        [name, f"{value:.3f}"] for row, values in found.items() if row != "roles" for name, value in values.items()
    ]
    table = report.table(["", "value"], shown) if shown else ""
    report.publish(Path(options.output), report.report("planner", figures), {"options": options}, table)


if __name__ == "__main__":
    command(Options, run)
