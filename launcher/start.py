"""Starting a run: the plan, its folder, and the controller, as a job or as a process of this machine.

Owns what is written into a run folder before the controller takes over.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from omegaconf import OmegaConf

from launcher.control.ownership import MODULE
from launcher.job import Plan
from launcher.jobs import CONTROLLER
from launcher.keys import write_keys
from launcher.planning import models
from launcher.planning.folders import folders
from launcher.planning.plan import make_plan
from launcher.rundir import SERVE, SOURCE, Desired, RunDir, code_hash, snapshot_code
from launcher.scheduler import slurm
from launcher.scheduler.allocation import read_allocation
from launcher.scheduler.chain import submit_chain
from launcher.scheduler.submit import submit_controller
from launcher.schema import Config, Executor
from workers.spec import write_json


class CannotStart(Exception):
    """The code changes under our hands."""


class Controlled(msgspec.Struct, frozen=True, kw_only=True):
    """Where the controller of a new start runs: a job, or a child of this process."""

    job: str = ""
    process: subprocess.Popen[bytes] | None = None


def run_dir(config: Config) -> RunDir:
    assert config.run is not None
    return RunDir(Path(config.runs_dir).expanduser() / config.run)


def plan_run(config: Config) -> tuple[RunDir, Plan, models.ResolvedModel]:
    """Writes nothing. Raises Refused with every fault."""
    assert config.cluster is not None
    where = folders(config)
    model = models.resolve(config.model, where.cache, where.hub)
    run = run_dir(config)
    job = slurm.surrounding_job() if config.cluster.executor is Executor.steps else ""
    plan = make_plan(
        config,
        model=model,
        folders=where,
        code=code_hash(),
        interpreter=sys.executable,
        run_dir=str(run.path),
        allocation=read_allocation(job) if job else None,
    )
    return run, plan, model


def write_run(run: RunDir, plan: Plan, config: Config) -> None:
    """All that a controller needs. What an earlier start of the same run left is out of the way after this."""
    run.create()
    for left in (run.status, run.endpoint, *run.proxies.glob("*.json")):
        left.unlink(missing_ok=True)
    code = snapshot_code(run)
    if code != plan.proxy.code:
        raise CannotStart(f"the code in {SOURCE} changed while it was launched; launch again")
    write_keys(run.keys)
    run.write_config(OmegaConf.to_yaml(OmegaConf.structured(config)))
    write_json(run.plan, plan)
    write_json(run.proxy_spec(plan.proxy.proxy), plan.proxy)
    workers = tuple(planned.spec.worker for planned in plan.workers)
    run.write_desired(Desired(target=SERVE, workers=workers, since=time.time()))


def start_controller(run: RunDir, plan: Plan, *, alone: bool = False) -> Controlled:
    """`alone`: its workers live. Raises JobError where the queue refuses a job."""
    if plan.chain_length:
        return Controlled(job=submit_chain(run, plan, () if alone else plan.workers))
    if plan.controller is not None:
        return Controlled(job=submit_controller(run, plan))
    code_dir = run.code_dir(plan.proxy.code)
    log_dir = run.log_dir(CONTROLLER)
    log_dir.mkdir(mode=0o700, exist_ok=True)
    with (log_dir / "controller.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(run.path)],
            cwd=code_dir,
            env={**os.environ, "PYTHONPATH": str(code_dir)},
            # The pipe's end tells a local run's controller that the launcher is gone, however it went.
            stdin=subprocess.PIPE if plan.executor == "local" else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C is for the launcher alone
        )
    return Controlled(process=process)
