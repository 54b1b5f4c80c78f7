"""Figures of Sluice beside its peers. Pure: ratios within one repeat, and the tables.

A figure is called `NAME.CASE.PART.WHAT`. Every ratio is Sluice's figure over the other's: below 1 is better. Those of
Sluice with the policy that comes by default, which the peers' cheapest do not do the work of, begin with `sluice-kv.`.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import report

# And their policies. What the peers are run with looks at no caches, and neither does the first.
SLUICES = {"sluice": "least_loaded", "sluice-kv": "kv"}
PREFIXES = {"sluice": "", "sluice-kv": "sluice-kv."}  # of their ratios
RATIOS = ("us_per_token", "us_per_request", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
DIFFERENCES = ("added_ttft_p50_ms", "added_ttft_p99_ms", "added_itl_p50_ms", "added_itl_p99_ms")
GOALS = {
    "ratio.whole.streams.us_per_token.cheapest": 0.8,
    "ratio.whole.steady.us_per_token.cheapest": 0.8,
    "ratio.split.streams.us_per_token.vllm-router": 0.5,
    "ratio.split.steady.us_per_token.vllm-router": 0.5,
    "ratio.whole.prompts.us_per_request.cheapest": 1.0,
}


def ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """Of costs and latencies to each peer's and to the cheapest one's; of what is added the difference, as it may
    be nothing."""
    found: dict[str, float] = {}
    for figure, ours in figures.items():
        name, _, rest = figure.partition(".")
        what = rest.rpartition(".")[2]
        if name not in SLUICES or what not in (*RATIOS, *DIFFERENCES):
            continue
        found |= {PREFIXES[name] + ratio: value for ratio, value in _beside_peers(figures, rest, what, ours).items()}
    return found


def _beside_peers(figures: Mapping[str, float], rest: str, what: str, ours: float) -> dict[str, float]:
    named = {other: name for other in figures if (name := other.removesuffix(f".{rest}")) != other}
    theirs = {name: figures[other] for other, name in named.items() if name not in SLUICES}
    if what in DIFFERENCES:
        return {f"difference.{rest}.{peer}": ours - value for peer, value in theirs.items()}
    found = {f"ratio.{rest}.{peer}": ours / value for peer, value in theirs.items()}
    if theirs and what.startswith("us_per_"):
        found[f"ratio.{rest}.cheapest"] = ours / min(theirs.values())
    return found


def show(figures: Mapping[str, float]) -> str:
    blocks = [_table(figures, case) for case in ("whole", "split")]
    wanted = [(prefix + name, goal) for prefix in PREFIXES.values() for name, goal in GOALS.items()]
    reached = [
        f"{name}: {figures[name]:.2f} (goal: at most {goal}, {'reached' if figures[name] <= goal else 'missed'})"
        for name, goal in wanted
        if name in figures
    ]
    return "\n\n".join([*filter(None, blocks), "\n".join(reached)])


def _table(figures: Mapping[str, float], case: str) -> str:
    """One column per target; the floor beside it where it has the same figure."""
    parts = [figure.split(".", 2) for figure in figures]
    ours = [(name, what) for name, of, what in parts if of == case and name not in ("ratio", "difference")]
    names = list(dict.fromkeys(name for name, _ in ours))
    whats = list(dict.fromkeys(what for _, what in ours))
    rows = [
        [what, *(_cell(figures, f"floor.{what}"), *(_cell(figures, f"{name}.{case}.{what}") for name in names))]
        for what in whats
    ]
    return report.table([case, "floor", *names], rows) if rows else ""


def _cell(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.2f}" if name in figures else ""
