"""What `up` does about a run that is there already: refuses one that lives, brings back a controller that was lost.

Owns the comparison of two plans. A run is the same run only where everything but its code is the same: its workers
go on with the code that they were started with, and so does the new controller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from omegaconf import OmegaConf

from launcher.control.ownership import living_owner
from launcher.job import Plan
from launcher.jobs import Row, controller_name
from launcher.rundir import STOP, Owner, RunDir, read_optional
from launcher.scheduler import local, slurm
from launcher.schema import Config
from launcher.view.present import how_to_return

MAX_SHOWN = 8
# What a config says about one call of the launcher, not about the run.
OF_THE_CALL = frozenset({"action", "output", "worker", "follow", "timeout_s", "runs_dir", "code", "batch"})
# Of a plan: what may differ between two calls for the same run.
CODE = "code"
NOTES = "notes"


class AlreadyLive(Exception):
    """The run lives, or its remains do; says what to do."""


def lost_run(run: RunDir, made: Plan, config: Config) -> Plan | None:
    """The plan of a run whose workers live without a controller; None where nothing of the run is left. Raises
    AlreadyLive for everything else, or JobError where Slurm cannot be asked."""
    owner = living_owner(run)
    if owner is not None and not _is_of_our_job(owner, made):
        raise _live(run, made, f"its controller is process {owner.pid} on {owner.host}")
    if made.executor == "local":
        pids = local.run_processes(run)
        if pids:
            raise _live(run, made, f"processes of it are left: {', '.join(map(str, pids))}")
        return None
    rows = [row for row in slurm.plan_rows(read_optional(run.plan, Plan) or made, run.path) if _is_left(row)]
    if not rows:
        return None
    jobs = ", ".join(f"{row.name} (job {row.job}, {row.state})" for row in rows)
    if any(row.name == controller_name(made.run) for row in rows):
        raise _live(run, made, f"Slurm holds its jobs {jobs}")
    return same_plan(run, made, config, f"its controller is gone, and Slurm holds its jobs {jobs}")


def _is_of_our_job(owner: Owner, made: Plan) -> bool:
    """Of an earlier life of the job that holds the run: Slurm ended all of it when it queued the job again."""
    return made.allocation is not None and owner.job == made.allocation.job


def _is_left(row: Row) -> bool:
    return not row.ended and row.job != slurm.surrounding_job()


def same_plan(run: RunDir, made: Plan, config: Config, held: str) -> Plan:
    """The plan that lives, where it is the one asked for. Raises AlreadyLive."""
    if run.read_desired().target == STOP:
        raise AlreadyLive(f"run {made.run} was being stopped: {held}\n{how_to_return(run, made.run)}")
    old = run.read_plan()
    differences = list(changes(_comparable(old), _comparable(made)))
    if not differences:
        return old
    said = (
        list(changes(config_tree(OmegaConf.load(run.config)), config_tree(OmegaConf.structured(config)))) or differences
    )
    if len(said) > MAX_SHOWN:
        said = [*said[:MAX_SHOWN], f"and {len(said) - MAX_SHOWN} more"]
    raise AlreadyLive(
        f"run {made.run} lives with another configuration: {held}\n"
        + "".join(f"  {difference}\n" for difference in said)
        + "launch it as it was to bring its controller back, or stop it first\n"
        + how_to_return(run, made.run)
    )


def _live(run: RunDir, plan: Plan, held: str) -> AlreadyLive:
    return AlreadyLive(f"run {plan.run} is live: {held}\n{how_to_return(run, plan.run)}\nor choose another run=NAME")


def changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Pure. The leaves of two trees that differ, by key."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from changes(before, after, f"{path}.{index}")
    elif old != new:
        yield f"{path}: is {_short(old)}, asked for {_short(new)}"


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _comparable(plan: Plan) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(plan))
    del tree[NOTES], tree["proxy"][CODE], tree["revision"]
    for worker in tree["workers"]:
        del worker["spec"][CODE], worker["revision"]
    return tree


def config_tree(tree: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(tree)))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in OF_THE_CALL}
