"""Routing policies on a trace: `python -m benchmarks.routing [key=value ...]`.

The proxy's own cores and simulated engines in virtual time. Each policy at parts of what the baseline can keep up with;
medians over seeds of the arrivals' jitter. With `live_speed` instead a real proxy and real workers, beside the same in
virtual time. Owns what is printed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import BadArgument
from benchmarks.command import command
from benchmarks.routing.live import compare
from benchmarks.routing.measure import Measured, executor, measure
from benchmarks.routing.options import Options, base_requests, check, requests_of
from benchmarks.routing.picture import draw
from launcher.twin.traces import BadTrace

COLUMNS = (
    ("TTFT mean", "ttft_mean_s", 3),
    ("p50", "ttft_p50_s", 3),
    ("p90", "ttft_p90_s", 3),
    ("p99 s", "ttft_p99_s", 3),
    ("ITL p50", "itl_p50_ms", 1),
    ("p90", "itl_p90_ms", 1),
    ("p99 ms", "itl_p99_ms", 1),
    ("hits", "hits", 3),
    ("of LRU", "hits_to_shared", 2),
    ("good/s", "goodput_per_s", 2),
    ("good", "good", 3),
    ("imbalance", "imbalance", 2),
    ("decision p50", "decision_p50_us", 0),
    ("p99 us", "decision_p99_us", 0),
)


def show(options: Options, measured: Measured) -> str:
    header = ["", *(title for title, _, _ in COLUMNS)]
    rows = [
        [f"{policy} at {load:g}", *(f"{measured.cases[policy, load][name]:.{digits}f}" for _, name, digits in COLUMNS)]
        for load in measured.rates
        for policy in options.policy_names
    ]
    return report.table(header, rows)


def flat(measured: Measured) -> dict[str, float]:
    figures = {
        f"{policy}.{load:g}.{name}": value
        for (policy, load), case in measured.cases.items()
        for name, value in case.items()
    }
    figures |= {f"saturation.{name}": value for name, value in measured.saturations.items()}
    figures["bound.ttft_mean_s"] = measured.bound_s
    return figures | {f"cache.{name}": value for name, value in measured.caches.items()}


def run(options: Options) -> None:
    check(options)
    try:
        base_requests(options)
    except (BadTrace, OSError) as fault:
        raise BadArgument(str(fault)) from None
    if options.live_speed:
        run_live(options)
    else:
        run_virtual(options)


def run_virtual(options: Options) -> None:
    card = options.card
    print(f"card: {msgspec.json.encode(card).decode()}", flush=True)
    with executor(options.processes) as pool:
        measured = measure(options, pool)
    result = report.report("routing", flat(measured))
    output = Path(options.output)
    path = report.write(output, result, {"options": options, "card": card, "rates": measured.rates})
    draw(measured, options.policy_names, output / "routing.png")
    print(show(options, measured))
    for name, rate in measured.saturations.items():
        print(f"saturation of {name}: {rate:.3f} times the trace's rate")
    shared, infinite = measured.caches["shared"], measured.caches["infinite"]
    print(f"one cache of all engines' size finds {shared:.3f} of all blocks, one without an end {infinite:.3f}")
    print(f"idle engines with one such cache would begin to answer after {measured.bound_s:.3f} s")
    print(f"written: {path}, {output / 'routing.png'}")
    print(report.last_line(result))


def run_live(options: Options) -> None:
    """Each policy once, live and virtual, at `rate`."""
    requests = requests_of(options, options.rate or 1.0, 0)
    found = {name: compare(options, name, requests) for name in options.policy_names}
    names = list(next(iter(found.values())))
    print(report.table(["", *names], [[policy, *(f"{found[policy][n]:.3f}" for n in names)] for policy in found]))
    result = report.report("routing", {f"{policy}.{n}": found[policy][n] for policy in found for n in names})
    path = report.write(Path(options.output), result, {"options": options})
    print(f"written: {path}")
    print(report.last_line(result))


if __name__ == "__main__":
    command(Options, run)
