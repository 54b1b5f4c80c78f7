"""What a batch costs besides its engines: `python -m benchmarks.batch_cost [key=value ...]`.

The same requests, on engines that do nothing, once from the closed loop of users that measures the proxy, and once as
a batch from a file into a file, in turns. The figure is the CPU of all of it per request: client, proxy and hosts; the
batch's client includes reading the input twice, its store and its output. Owns the experiment and its figures.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import uvloop

from benchmarks import report
from benchmarks.arguments import Count, Duration
from benchmarks.command import command
from benchmarks.direct import engine_spec
from benchmarks.load import PATH, Endpoint, Rhythm, ask, drive, prompt
from benchmarks.processes import FLEETS, Fleet, cpu_s, fleet
from benchmarks.report import say
from launcher.batch.http_pool import Pool, Target
from launcher.batch.output import Outputs
from launcher.batch.owner import claim
from launcher.batch.pace import Pace
from launcher.batch.progress import Progress
from launcher.batch.request import Defaults
from launcher.batch.runner import Files, Runner
from launcher.batch.store import Store
from launcher.batch.survey import Input, look
from launcher.keys import batch_key_file

MAX_LINE_BYTES = 32 << 20
PARTS = ("client", "proxy", "hosts")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    requests: Count = 6000
    at_once: Count = 128
    tokens: Count = 4
    prompt_chars: Count = 2000
    step_ms: Duration = 20.0
    repeats: Count = 3
    seed: int = 0
    output: str = "bench-results"


class BrokenBatch(Exception):
    """Not every request has its result: there is no figure."""


def users(options: Options, endpoint: Endpoint, texts: Sequence[str]) -> None:
    asks = [ask(endpoint, text, options.tokens, streams=False) for text in texts]
    shares = [asks[user :: options.at_once] for user in range(options.at_once)]
    step_s = options.step_ms / 1000  # as the benchmark of the proxy has it: not in step with each other
    uvloop.run(drive(endpoint, shares, Rhythm(start_s=step_s, pause_s=step_s), random.Random(options.seed)))


def write_input(path: Path, options: Options, endpoint: Endpoint, texts: Sequence[str]) -> None:
    with path.open("wb") as file:
        for number, text in enumerate(texts):
            body = {"model": endpoint.model, "prompt": text, "max_tokens": options.tokens, "temperature": 0}
            line = {"custom_id": f"r{number}", "method": "POST", "url": PATH, "body": body}
            file.write(msgspec.json.encode(line) + b"\n")


def batch(options: Options, endpoint: Endpoint, folder: Path, key: str) -> None:
    """Raises BrokenBatch."""
    folder.mkdir()
    ownership = claim(folder, "", say)
    with (
        closing(Store(folder / "results.log")) as store,
        closing(Outputs(folder / "out.jsonl", folder / "err.jsonl", in_order=True)) as outputs,
    ):
        given = Input((folder.parent / "in.jsonl",), Defaults(endpoint.model), MAX_LINE_BYTES)
        survey = look(given, store)
        core = Progress(survey.num_lines, 0, 0, Pace(options.at_once))
        target = Target(f"http://{endpoint.host}:{endpoint.port}", key)

        async def run() -> None:
            await Runner(given, survey, Files(store, outputs, ownership), core, Pool(lambda: target)).run(_nothing)

        outputs.begin(store)
        uvloop.run(run())
        outputs.end(store)
    if core.figures.done != options.requests:
        raise BrokenBatch(f"{core.figures.done} of {options.requests} done, {core.figures.failed} failed")


async def _nothing() -> None:
    """Nobody looks on."""


def repeat(options: Options, running: Fleet, folder: Path, number: int) -> dict[str, float]:
    rng = random.Random(options.seed + number)
    texts = [prompt(options.prompt_chars, rng) for _ in range(options.requests)]
    write_input(folder / "in.jsonl", options, running.endpoint, texts)
    key = batch_key_file(folder / "run" / "keys").read_text()
    cases = {
        "users": lambda: users(options, running.endpoint, texts),
        "batch": lambda: batch(options, running.endpoint, folder / f"batch-{number}", key),
    }
    figures: dict[str, float] = {}
    for case in sorted(cases, reverse=number % 2 == 0):
        before = _cpu_s(running)
        cases[case]()
        taken = {part: (now - before[part]) / options.requests * 1e6 for part, now in _cpu_s(running).items()}
        figures |= {f"{case}.{part}_us_per_request": taken[part] for part in PARTS}
        figures[f"{case}.all_us_per_request"] = sum(taken.values())
    ratios = {f"ratio.{part}": _ratio(figures, part) for part in (*PARTS, "all")}
    return figures | ratios


def _cpu_s(running: Fleet) -> dict[str, float]:
    of = {"proxy": running.proxy_pids, "hosts": running.hosts}
    return {"client": time.process_time(), **{name: sum(map(cpu_s, pids)) for name, pids in of.items()}}


def _ratio(figures: Mapping[str, float], part: str) -> float:
    return figures[f"batch.{part}_us_per_request"] / figures[f"users.{part}_us_per_request"]


def show(figures: Mapping[str, float]) -> str:
    rows = []
    for part in (*PARTS, "all"):
        cells = [f"{figures[f'{case}.{part}_us_per_request']:.0f}" for case in ("users", "batch")]
        rows.append([part, *cells, f"{figures[f'ratio.{part}']:.2f}"])
    return report.table(["µs of CPU per request", "users", "batch", "ratio"], rows)


def run(options: Options) -> None:
    runs = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-")))
        say("starting a fleet")
        running = stack.enter_context(fleet(folder / "run", FLEETS["whole"], engine_spec(options.step_ms)))
        for number in range(options.repeats):
            say(f"repeat {number + 1} of {options.repeats}")
            runs.append(repeat(options, running, folder, number))
    figures = report.medians(runs)
    result = report.report("batch_cost", figures)
    report.publish(Path(options.output), result, {"options": options, "repeats": runs}, show(figures))


if __name__ == "__main__":
    command(Options, run)
