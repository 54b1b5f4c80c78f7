"""The answer of `action=capacity` for people: a table, plain words about what pays, and a picture.

Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.twin.capacity_search import Tried
from launcher.twin.needs import FULLEST
from launcher.view.present import table

if TYPE_CHECKING:
    from launcher.twin.capacity import Answer


def answer_text(answer: Answer) -> str:
    return "\n".join(_lines(answer))


def _lines(answer: Answer) -> Iterator[str]:
    yield (
        f"{answer.rate:.2f} requests/s; p{answer.percentile:g} of TTFT within {answer.ttft_s:g} s and of ITL within"
        f" {1e3 * answer.itl_s:g} ms; step times: {answer.source}"
    )
    chosen, cheaper = answer.chosen, answer.next_cheaper
    if chosen is None:
        yield from _nothing(answer)
        return
    rows = [("chosen", chosen), ("next cheaper", cheaper), *_others(answer)]
    yield from table([HEADER, *(_row(name, tried) for name, tried in rows if tried is not None)])
    yield _margin(answer)
    if cheaper is not None:
        yield f"with {cheaper.split.gpus} GPUs it would miss: {cheaper.misses}"
    else:
        yield f"with fewer GPUs they would be more than {FULLEST:.0%} full, by arithmetic"
    yield _what_pays(answer)
    yield f"{len(answer.tried)} splits of {answer.requests} requests replayed in {answer.took_s:.0f} s"
    yield from _how_long(answer, chosen)


def _nothing(answer: Answer) -> Iterator[str]:
    """Why not, and what to type next where more GPUs may help."""
    if not answer.at_least:
        yield f"nothing keeps to it, however many GPUs there are: {_never(answer)}"
        return
    least, most = min(answer.at_least.values()), answer.max_gpus
    if least > most:
        yield f"nothing within {most} GPUs can keep to it: by arithmetic it takes at least about {least}"
    else:
        yield f"nothing within {most} GPUs keeps to it; by arithmetic it takes at least about {least}"
    if answer.next_cheaper is not None:
        yield from table([HEADER, _row("closest", answer.next_cheaper)])
    nodes = math.ceil(BEYOND * max(least, most) / answer.gpus_per_node)
    yield f"next: cluster.nodes={nodes} predict.max_gpus={nodes * answer.gpus_per_node}"


def _never(answer: Answer) -> str:
    missed = []
    if answer.idle.ttft_s > answer.ttft_s:
        missed.append(f"p{answer.percentile:g} of TTFT is {answer.idle.ttft_s:.3f} s")
    if answer.idle.itl_s > answer.itl_s:
        missed.append(f"ITL is {1e3 * answer.idle.itl_s:.1f} ms")
    if missed:
        return f"{' and '.join(missed)} even on the best layout's engines with nothing else to do"
    return "no layout keeps to both, and none that keeps to one can hand over to one that keeps to the other"


def _how_long(answer: Answer, chosen: Tried) -> Iterator[str]:
    """A replay begins with the answers in flight that arithmetic expects, and sees them change only if it is long."""
    answer_s = chosen.itl_s * (answer.num_output - 1)
    if answer.span_s >= LONG * answer_s:
        return
    yield (
        f"doubtful: requests came for {answer.span_s:.0f} s, {answer.span_s / answer_s:.1f} times what an answer takes;"
        f" workload.requests={math.ceil(LONG * answer_s * answer.rate)} replays longer"
    )


LONG = 1.5  # times what an answer takes
BEYOND = 1.25  # times what is needed at the least, it may be enough
NOISE = 0.1
HEADER = ("", "GPUs", "split", "TTFT s", "ITL ms", "of targets")


def _others(answer: Answer) -> Iterator[tuple[str, Tried | None]]:
    for name, tried in (("aggregated", answer.best_aggregated), ("disaggregated", answer.best_disaggregated)):
        if tried is not answer.chosen:
            yield f"best {name}", tried


def _row(name: str, tried: Tried) -> tuple[str, ...]:
    return (name, str(tried.split.gpus), str(tried.split), *_latencies(tried))


def _latencies(tried: Tried) -> tuple[str, str, str]:
    if math.isinf(tried.ttft_s):
        return "not kept up", f"{1e3 * tried.itl_s:.1f}", "-"
    return f"{tried.ttft_s:.3f}", f"{1e3 * tried.itl_s:.1f}", f"{tried.worst:.2f}"


def _margin(answer: Answer) -> str:
    assert answer.chosen is not None
    spare = f"margin: {1 - answer.chosen.worst:.0%} of the tighter target; holds {answer.load_held:g} times the load"
    return f"{spare}; first to break: {answer.breaks_first}" if answer.breaks_first else f"{spare}, and perhaps more"


def _what_pays(answer: Answer) -> str:
    chosen, aggregated, apart = answer.chosen, answer.best_aggregated, answer.best_disaggregated
    assert chosen is not None
    if chosen.split.prefill is not None:
        if (close := _nearly_as_good(answer)) is not None:
            return f"disaggregation makes no difference: aggregated, as many GPUs miss by {close.worst - 1:.0%} only"
        saved = f"{aggregated.split.gpus - chosen.split.gpus} GPUs fewer" if aggregated else "aggregated does not do it"
        return f"disaggregation pays: {saved}"
    if apart is not None:
        return f"disaggregation does not pay: it takes {apart.split.gpus} GPUs, aggregated {chosen.split.gpus}"
    least = answer.at_least.get("disaggregated")
    why = "no pair of layouts can" if least is None else f"nothing with fewer than {chosen.split.gpus} GPUs does it"
    return f"disaggregation does not pay: {why}"


def _nearly_as_good(answer: Answer) -> Tried | None:
    """Aggregated on as many GPUs, off by what another sample of requests would change."""
    assert answer.chosen is not None
    same = [one for one in answer.tried if one.split.prefill is None and one.split.gpus == answer.chosen.split.gpus]
    return next((one for one in same if one.worst <= 1 + NOISE), None)


def draw(answer: Answer, folder: str) -> bool:
    """Every split that was replayed to its end: what it costs, and how much of the tighter target it takes. False: no
    library to draw with is installed.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    shown = [tried for tried in answer.tried if math.isfinite(tried.worst)]
    for name, apart in (("aggregated", False), ("disaggregated", True)):
        points = [tried for tried in shown if (tried.split.prefill is not None) == apart]
        axes.scatter([tried.split.gpus for tried in points], [tried.worst for tried in points], label=name)
    frontier = pareto(shown)
    axes.plot([tried.split.gpus for tried in frontier], [tried.worst for tried in frontier], color="0.6")
    axes.axhline(1.0, color="tab:red", linestyle=":")
    axes.set_xlabel("GPUs")
    axes.set_ylabel(f"p{answer.percentile:g} as a part of its target")
    axes.legend()
    figure.savefig(Path(folder).expanduser() / "capacity.png", dpi=110)
    pyplot.close(figure)
    return True


def pareto(tried: list[Tried]) -> list[Tried]:
    """Those that nothing cheaper beats."""
    found: list[Tried] = []
    for each in sorted(tried, key=lambda one: (one.split.gpus, one.worst)):
        if not found or each.worst < found[-1].worst:
            found.append(each)
    return found
