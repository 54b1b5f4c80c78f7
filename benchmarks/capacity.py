"""Capacity against brute force: `python -m benchmarks.capacity [key=value ...]`.

Six workloads, from prefill-heavy to decode-heavy. For each, `action=capacity` picks a split; then every split of up to
so many GPUs is replayed, and the cheapest that keeps to the targets is known. That is done for several samples of the
same workload, as a split may have been lucky. Owns the workloads, when aggregated wins, and what is printed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count, Duration, chosen, counts
from benchmarks.command import command
from benchmarks.report import say
from launcher.config import load
from launcher.schema import Config, WorkloadConfig
from launcher.twin.capacity import Answer, Capacity
from launcher.twin.capacity_search import Tried
from launcher.twin.simulate import resolved
from launcher.twin.splits import Layout, Part, Split
from launcher.twin.workload import make_workload

MOST = 0.75  # of the samples: what wins in so many wins


class Case(msgspec.Struct, frozen=True):
    """Mean tokens, requests per second and GPU, and targets."""

    prompt_tokens: float
    output_tokens: float
    per_gpu_s: float
    ttft_s: float
    itl_s: float
    reuse: float = 0.0


CASES = {
    "code": Case(6000, 60, 4.0, 2.0, 0.04),
    "documents": Case(12000, 300, 1.6, 3.0, 0.025),
    "chat": Case(2000, 300, 5.0, 1.0, 0.03),
    "agents": Case(8000, 200, 5.0, 1.5, 0.025, 0.7),
    "reasoning": Case(800, 2000, 1.2, 1.0, 0.015),
    "answers": Case(300, 400, 12.0, 0.5, 0.05),
}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    model: str = "llama-3.1-8b"
    gpus: str = "8,16"
    load: Duration = 0.7  # of the rates above
    requests: Count = 400
    samples: Count = 3  # of the workload; what is picked is picked for the first
    cases: str = ",".join(CASES)
    layouts: str = "1"  # tensor parallel; with several, prefill and decode may differ
    output: str = "out/capacity"


def config_of(options: Options, case: Case, gpus: int) -> Config:
    targets = [f"routing.targets.ttft_s={case.ttft_s}", f"routing.targets.itl_s={case.itl_s}"]
    nodes = [f"cluster.nodes={-(-gpus // 8)}", "model.max_model_len=65536"]
    return load(["+cluster=h100x1", f"model={options.model}", "action=capacity", *targets, *nodes])


def capacity_of(options: Options, name: str, gpus: int, seed: int = 1) -> Capacity:
    case = CASES[name]
    workload = WorkloadConfig(
        rate=case.per_gpu_s * gpus * options.load,
        requests=options.requests,
        prompt_tokens=case.prompt_tokens,
        output_tokens=case.output_tokens,
        reuse=case.reuse,
        seed=seed,
    )
    config = config_of(options, case, gpus)
    return Capacity(config, resolved(config), {}, make_workload(workload, config.model.max_model_len))


def all_splits(sizes: Sequence[int], max_gpus: int) -> Iterator[Split]:
    """Cheapest first."""
    parts = [Part(Layout(size), replicas) for size in sizes for replicas in range(1, max_gpus // size + 1)]
    found = [Split(part) for part in parts]
    found += [Split(decode, prefill) for decode in parts for prefill in parts if decode.gpus + prefill.gpus <= max_gpus]
    yield from sorted(found, key=lambda split: split.gpus)


def brute_force(capacity: Capacity, sizes: Sequence[int], max_gpus: int) -> tuple[int, list[Tried]]:
    """How many were replayed, and all good ones of the cheapest size. What is dearer is not looked at."""
    good: list[Tried] = []
    number = 0
    for split in all_splits(sizes, max_gpus):
        if good and split.gpus > good[0].split.gpus:
            break
        tried = capacity.try_split(split)
        number += 1
        good += [tried] if tried.good else []
    return number, good


def is_right(says_aggregated: bool, wins: float) -> bool:
    """`wins`: the part of samples in which aggregated is as cheap as anything. If neither wins in most, both are."""
    return (says_aggregated or wins < MOST) and (not says_aggregated or wins > 1 - MOST)


def row(options: Options, name: str, gpus: int) -> tuple[list[str], dict[str, float]]:
    sizes = counts("layouts", options.layouts)
    capacity, *others = (capacity_of(options, name, gpus, 1 + number) for number in range(options.samples))
    say(f"{name} on {gpus} GPUs: capacity")
    answer: Answer = capacity.answer(gpus, sizes)
    say(f"{name} on {gpus} GPUs: all splits")
    number, good = brute_force(capacity, sizes, gpus)
    samples = [good, *(brute_force(other, sizes, gpus)[1] for other in others)]
    least = [found[0].split.gpus if found else gpus + 1 for found in samples]
    wins = statistics.fmean(any(tried.split.prefill is None for tried in found) for found in samples)
    picked = answer.chosen.split.gpus if answer.chosen else gpus + 1
    says_aggregated = answer.chosen is not None and answer.chosen.split.prefill is None
    best = min(good, key=lambda tried: tried.worst).split if good else None
    cells = [name, f"{gpus}", str(answer.chosen.split) if answer.chosen else "none", f"{picked}", str(best)]
    figures = {
        "gpus_over_best": float(picked - least[0]),
        "gpus_over_usual": float(picked - statistics.median(least)),
        "aggregated_wins": wins,
        "agrees_on_aggregated": float(is_right(says_aggregated, wins)),
        "replays": float(len(answer.tried)),
        "brute_force_replays": float(number),
        "took_s": answer.took_s,
    }
    shown = (" ".join(map(str, least)), f"{wins:.0%}", f"{len(answer.tried)}", f"{number}", f"{answer.took_s:.1f}")
    return [*cells, *shown], figures


def run(options: Options) -> None:
    names = chosen("cases", options.cases, CASES)
    rows: list[list[str]] = []
    figures: dict[str, float] = {}
    for gpus in counts("gpus", options.gpus):
        for name in names:
            cells, found = row(options, name, gpus)
            rows.append(cells)
            figures |= {f"{name}.{gpus}.{key}": value for key, value in found.items()}
    agrees = [value for name, value in figures.items() if name.endswith("agrees_on_aggregated")]
    for over in ("gpus_over_best", "gpus_over_usual"):
        figures[f"worst_{over}"] = max(value for name, value in figures.items() if name.endswith(over))
    figures["agrees_on_aggregated"] = sum(agrees) / len(agrees)
    header = ["", "of", "picked", "GPUs", "best", "GPUs by sample", "aggregated wins", "replays", "of all", "s"]
    print(report.table(header, rows))
    result = report.report("capacity", figures)
    print(f"written: {report.write(Path(options.output), result, {'options': options})}")
    print(report.last_line(result))


if __name__ == "__main__":
    command(Options, run)
