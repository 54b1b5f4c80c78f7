"""A file of prompts beside vLLM's own offline engine: `python -m benchmarks.batch [key=value ...]`.

Real engines on this machine's CPU, a model that keeps them busy. In turns: the file as a batch on a run of two workers,
and each half of it, cut by hand, in one of two `LLM.generate` with the same settings. Twice: prompts of mixed lengths
of which half share beginnings, and prompts that all share beginnings which lie scattered in the file. Owns the
experiment and its figures: tokens per second of both, and the CPU of whatever is not an engine.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.batch_engines import ENGINES, PARTS, Ours, Passed, Plain
from benchmarks.batch_work import Shape, prompts
from benchmarks.command import command
from benchmarks.report import say
from workers.engines.tiny_model import write_model

CASES = ("mixed", "scattered")
WAYS = ("batch", "generate")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """As given about 200 million parameters."""

    requests: Count = 300
    prefix_words: Count = 200
    repeats: Count = 3
    layers: Count = 16
    width: Count = 1024
    seed: int = 0
    output: str = "bench-results"


def model_shape(options: Options) -> dict[str, int]:
    return {
        "hidden_size": options.width,
        "intermediate_size": 11 * options.width // 4,
        "num_hidden_layers": options.layers,
        "num_key_value_heads": 8,
    }


def shape(options: Options, case: str) -> Shape:
    words, requests = options.prefix_words, options.requests
    if case == "mixed":
        return Shape(requests=requests, sharing=0.5, groups=6, prefix_words=words)
    return Shape(requests=requests, sharing=1.0, groups=max(1, requests // 5), prefix_words=2 * words)


def repeat(options: Options, ours: Ours, plain: Plain, number: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for case in CASES:
        given = prompts(shape(options, case), random.Random(f"{options.seed} {number} {case}"))
        ways = {"batch": lambda: ours.run(given, f"{case}-{number}"), "generate": lambda: plain.run(given)}  # noqa: B023
        passed = {way: ways[way]() for way in sorted(ways, reverse=number % 2 == 1)}
        for way, one in passed.items():
            figures[f"{case}.{way}_tokens_per_s"] = one.tokens / one.took_s
            figures[f"{case}.{way}_cached"] = one.cached_tokens / one.prompt_tokens
        figures[f"{case}.ratio"] = figures[f"{case}.batch_tokens_per_s"] / figures[f"{case}.generate_tokens_per_s"]
        figures |= {f"{case}.cpu_{part}": share for part, share in shares(passed["batch"]).items()}
        say(f"  {case}: {figures[f'{case}.ratio']:.3f} of LLM.generate's tokens/s")
    return figures


def shares(passed: Passed) -> dict[str, float]:
    """Of the CPU that the engines could have had: a core each, for as long as the pass took."""
    return {part: passed.cpu_s[part] / (ENGINES * passed.took_s) for part in PARTS}


def show(figures: Mapping[str, float]) -> str:
    rows = []
    for case in CASES:
        cells = [f"{figures[f'{case}.{way}_{what}']:.2f}" for what in ("tokens_per_s", "cached") for way in WAYS]
        rows.append(
            [case, *cells, f"{figures[f'{case}.ratio']:.3f}", *(f"{figures[f'{case}.cpu_{p}']:.3f}" for p in PARTS)]
        )
    header = ["", "batch tokens/s", "generate", "batch cached", "generate", "ratio", *(f"cpu {part}" for part in PARTS)]
    return report.table(header, rows)


def run(options: Options) -> None:
    runs = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-")))
        model = folder / "model"
        say("making the model, starting four engines")
        write_model(model, model_shape(options))
        ours = Ours(model, model_shape(options), folder)
        stack.callback(ours.stop)
        ours.wait()
        plain = Plain(model)
        stack.callback(plain.stop)
        plain.wait()
        for number in range(options.repeats):
            say(f"repeat {number + 1} of {options.repeats}")
            runs.append(repeat(options, ours, plain, number))
    figures = report.medians(runs)
    result = report.report("batch", figures)
    report.publish(Path(options.output), result, {"options": options, "repeats": runs}, show(figures))


if __name__ == "__main__":
    command(Options, run)
