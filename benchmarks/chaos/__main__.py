"""What users see while things happen to a run: `python -m benchmarks.chaos [rows=NAME,NAME] [key=value ...]`.

Each row launches a run of simulated engines on a real Slurm, lets users read streams all the time, makes one thing
happen and waits until the run is whole again. Owns the order of a row and what is printed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import BadArgument
from benchmarks.chaos import hand_over_rows, loss_rows, network_rows, outage_rows, preemption_rows, soak_row
from benchmarks.chaos.dying import controllers_dying
from benchmarks.chaos.figures import Seen, figures
from benchmarks.chaos.onebox import CONF, own_slurm
from benchmarks.chaos.options import ALL, OWN_SLURM, Options
from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import StageFault, staged
from benchmarks.command import command
from benchmarks.report import say
from launcher.scheduler.local import run_processes

ROWS: dict[str, Row] = hand_over_rows.ROWS | preemption_rows.ROWS | loss_rows.ROWS
ROWS |= network_rows.ROWS | outage_rows.ROWS | soak_row.ROWS
AFTER_S = 2.0  # users go on for so long after the run is whole again
COLUMNS = (  # the calm ones are p99
    "streams",
    "lost",
    "failed",
    "different",
    "cut",
    "pause p99",
    "max",
    "wait max",
    "calm",
    "wait",
    "over",
    "allowed",
)


def chosen(options: Options) -> dict[str, Row]:
    able = [name for name, row in ROWS.items() if not (row.networks and has_slurm(options))]
    names = [name for name in able if name not in soak_row.ROWS] if options.rows == ALL else options.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise BadArgument(f"rows: no row {', '.join(unknown)}; known: {', '.join(ROWS)}")
    if not set(names) <= set(able):
        raise BadArgument(
            f"rows: {', '.join(set(names) - set(able))} cuts links: only on a Slurm that this starts itself"
        )
    return {name: ROWS[name] for name in names}


def has_slurm(options: Options) -> bool:
    return options.cluster != OWN_SLURM or CONF in os.environ


def measure(row: Row, folder: Path, options: Options) -> Seen:
    options = msgspec.structs.replace(options, tokens=row.tokens or options.tokens)
    with row.ground(folder / "runs"), staged(folder, options, row.arguments) as stage:
        began_at = time.perf_counter()
        time.sleep(options.calm_s)
        stage.until(stage.users.all_have_asked, "each user's first answer")
        event_at = time.perf_counter()
        with controllers_dying(stage) if options.kill_controller else nullcontext():
            row.happen(stage)
        took_s = time.perf_counter() - event_at
        time.sleep(AFTER_S)
        stage.users.finish()
        stage.until(lambda: stage.fleet().get("open_tickets") == 0, "no open ticket")
        say(f"calm for {event_at - began_at:.0f} s, over after {took_s:.0f} s")
        for stream in stage.users.streams:
            if stream.fault:
                say(f"{'cut' if stream.was_cut else 'lost' if stream.began else 'failed'}: {stream.fault}")
        run = stage.run
        seen = figures(stage.users.streams, event_at, stage.may_cut)
    if left := run_processes(run):
        raise StageFault(f"processes of the run are left: {left}")
    return seen


def cells(seen: Seen, row: Row) -> list[str]:
    times = (seen.pause_p99_s, seen.pause_max_s, seen.wait_max_s, seen.calm_pause_p99_s, seen.calm_wait_p99_s)
    counts = (seen.streams, seen.lost, seen.failed, seen.different, seen.cut)
    allowed = "queued" if row.allowed_s is None else f"{row.allowed_s:g}"
    return [*map(str, counts), *(f"{value:.3f}" for value in times), f"{seen.over_s:.3f}", allowed]


def flat(found: Mapping[str, Seen]) -> dict[str, float]:
    return {
        f"{name}.{figure}": value
        for name, seen in found.items()
        for figure, value in (msgspec.structs.asdict(seen) | {"over_s": seen.over_s}).items()
    }


def run(options: Options) -> None:
    rows = chosen(options)
    found: dict[str, Seen] = {}
    with tempfile.TemporaryDirectory(prefix="sluice-chaos-") as folder:
        for networks in (False, True):
            group = {name: row for name, row in rows.items() if row.networks is networks}
            with (
                nullcontext()
                if has_slurm(options) or not group
                else own_slurm(Path(folder) / f"slurm-{networks}", networks=networks)
            ):
                for name, row in group.items():
                    say(f"row {name}")
                    found[name] = measure(row, Path(folder) / name, options)
                    say("  ".join(cells(found[name], row)))
    result = report.report("chaos", flat(found))
    path = report.write(Path(options.output), result, {"options": options})
    print(report.table(["", *COLUMNS], [[name, *cells(seen, rows[name])] for name, seen in found.items()]))
    print(f"seconds; over: the longest pause or wait over the normal p99\nwritten: {path}")
    print(report.last_line(result))
    if not all(seen.is_whole for seen in found.values()):
        raise SystemExit("streams were lost, requests failed or texts differ")


if __name__ == "__main__":
    command(Options, run)
