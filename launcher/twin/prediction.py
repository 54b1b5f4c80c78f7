"""A plan's pools over a workload in virtual time: the set-up, the figures that come of it, and both as text.

Pure but for the clock that tells how fast it went.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from launcher.job import Plan
from launcher.planner.word import ON
from launcher.twin.card import Card
from launcher.twin.elastic import Elastic, Operated
from launcher.twin.figures import figures_of
from launcher.twin.percentiles import percentile
from launcher.twin.planner import VirtualPlanner
from launcher.twin.records import Replayed
from launcher.twin.replay import Replay
from launcher.twin.setup import Pool, Setup
from launcher.twin.slurm import Site
from launcher.twin.workload import Workload
from launcher.view.present import table

SIMULATED = "the simulator's"


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    sources: dict[str, str]  # by pool: where its step time comes from
    requests: int
    left_out: int
    span_s: float
    figures: dict[str, float]
    operated: Operated | None  # where workers come and go
    times_real: float  # as fast as the requests come


def setup_of(plan: Plan, cards: Mapping[str, Card]) -> Setup:
    pools = [planned.spec.pool for planned in plan.workers]
    return Setup(
        pools={
            name: Pool(card=card, replicas=pools.count(name), caps=plan.proxy.pools[name])
            for name, card in cards.items()
        },
        pairs=plan.proxy.pairs,
        routing=plan.proxy.routing,
    )


def predict(plan: Plan, setup: Setup, workload: Workload, site: Site | None) -> Prediction:
    """`site`: None where workers neither come nor go."""
    started = time.process_time()
    if site is None:
        look = None if plan.planner != ON else VirtualPlanner(plan).look
        operated, replayed = None, Replay(setup, workload.requests, look=look).run()
    else:
        elastic = Elastic(plan, setup, workload.requests, site)
        replayed, operated = elastic.run(), elastic.operated
    took_s = time.process_time() - started
    return Prediction(
        sources={name: source_of(pool.card) for name, pool in setup.pools.items()},
        requests=len(workload.requests),
        left_out=workload.num_left_out,
        span_s=workload.span_s,
        figures=predicted(replayed, setup),
        operated=operated,
        times_real=replayed.end_s / took_s,
    )


def source_of(card: Card) -> str:
    return card.model.source if card.model else SIMULATED


def predicted(replayed: Replayed, setup: Setup) -> dict[str, float]:
    """Without what concerns this machine. Throughput counts to the last answer's end."""
    targets = setup.routing.targets
    figures = figures_of(replayed, targets.ttft_s, targets.itl_s)
    figures = {name: value for name, value in figures.items() if not name.startswith("decision")}
    records, end_s = replayed.records, max(1e-9, replayed.end_s - replayed.records[0].request.at_s)
    return figures | {
        "requests_per_s": len(records) / end_s,
        "prompt_tokens_per_s": sum(record.request.num_prompt for record in records) / end_s,
        "output_tokens_per_s": sum(record.request.num_output for record in records) / end_s,
    }


def latencies(replayed: Replayed, fraction: float, steady_from: float) -> tuple[float, float]:
    """TTFT and the time between tokens that this part of the requests keeps to, engines being warm."""
    records = replayed.records[int(steady_from * len(replayed.records)) :]
    itl = [gap for record in records if record.end_s and (gap := record.itl_s) is not None]
    return percentile([record.ttft_s for record in records], fraction), percentile(itl, fraction)


def operated_lines(operated: Operated | None) -> list[str]:
    if operated is None:
        return []
    return [
        f"workers: {operated.most_workers} at most, {operated.gpu_hours:.2f} GPU-hours; {operated.submitted} jobs"
        f" submitted, {operated.drained} workers drained, {operated.lost} lost;"
        f" {operated.failed_requests} requests failed"
    ]


def prediction_text(prediction: Prediction) -> str:
    found = prediction.figures
    header = ("", "mean", "p50", "p90", "p99")
    names = ("mean", "p50", "p90", "p99")
    rows = [
        header,
        ("time to first token, s", *(f"{found[f'ttft_{name}_s']:.3f}" for name in names)),
        ("time between tokens, ms", *(f"{found[f'itl_{name}_ms']:.1f}" for name in names)),
    ]
    sources = ", ".join(f"{name}: {source}" for name, source in prediction.sources.items())
    left_out = f"; {prediction.left_out} longer than model.max_model_len left out" if prediction.left_out else ""
    lines = [
        f"{prediction.requests} requests over {prediction.span_s:.0f} s{left_out}",
        *table(rows),
        f"throughput: {found['requests_per_s']:.2f} requests/s, {found['prompt_tokens_per_s']:.0f} prompt tokens/s,"
        f" {found['output_tokens_per_s']:.0f} output tokens/s",
        f"within both targets: {found['good']:.1%}; prompts cached: {found['hits']:.1%}; handed over:"
        f" {found['split']:.1%}; preemptions: {found['preemptions']:.0f}",
        *operated_lines(prediction.operated),
        f"step times: {sources}",
        f"{prediction.times_real:.0f} times as fast as real time",
    ]
    return "\n".join(lines)
