"""A run's workers as steps of one Slurm job, the one in which the controller runs: each is an `srun` below it.

Owns these processes. How a step stands is known from its srun, so Slurm is asked only to signal one. Nodes are named
here, and only here: they are the job's own for as long as it lives, and Slurm itself spreads steps over nodes so that
a large one may never find its GPUs together.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.control.endings import DRAIN_GRACE_S
from launcher.job import Allocation, Plan, PlannedWorker
from launcher.jobs import JobError, Row, job_name
from launcher.rundir import RunDir
from launcher.scheduler import slurm
from launcher.scheduler.task import task_command
from workers.agent.walltime import walltime_drain

LOOK_EVERY_S = 1.0
# Where the job is not known yet, the plan says so in these words.
JOB, NODE = "JOB", "NODE"
JUST_ENDED = ("Invalid job id specified", "already completing or completed")  # scancel's words for a step


@dataclass(slots=True)
class Step:
    name: str
    nodes: tuple[str, ...]
    process: subprocess.Popen[bytes]
    cancelled: bool = False

    @property
    def state(self) -> str:
        status = self.process.poll()
        if status is None:
            return "RUNNING"
        if status == 0:
            return "COMPLETED"
        return "CANCELLED" if self.cancelled else "FAILED"


class StepJobs:
    """A `JobSystem`. It knows the steps that it started itself; what else runs in the job ends with the job."""

    look_every_s = LOOK_EVERY_S

    def __init__(self, run: RunDir, allocation: Allocation) -> None:
        self._run = run
        self._allocation = allocation
        self._steps: dict[str, Step] = {}

    def submit(self, planned: PlannedWorker) -> str:
        spec = planned.spec
        step = step_id(self._allocation.job, planned)
        folder = self._run.log_dir(spec.worker)
        folder.mkdir(mode=0o700, exist_ok=True)
        name, nodes = job_name(spec.run, spec.worker, spec.generation), node_names(planned, self._allocation)
        with (folder / f"{step}_0_log.out").open("ab") as log:
            try:
                process = subprocess.Popen(
                    step_command(self._run, planned, self._allocation),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            except FileNotFoundError:
                raise slurm.missing("srun") from None
        self._steps[step] = Step(name, nodes, process)
        return step

    def rows(self) -> list[Row]:
        return [self._row(step_id, step) for step_id, step in self._steps.items()]

    def _row(self, step_id: str, step: Step) -> Row:
        state = step.state
        reason = f"srun ended with status {step.process.returncode}" if state == "FAILED" else ""
        end_time, nodes = self._allocation.end_time, ",".join(step.nodes)
        return Row(job=step_id, name=step.name, state=state, reason=reason, end_time=end_time, nodes=nodes)

    def cancel(self, jobs: Sequence[str], *, force: bool) -> None:
        """SIGTERM reaches the agents through Slurm alone: an srun that gets it kills its tasks, which is `force`."""
        asked = [step for job in jobs if (step := self._steps.get(job)) is not None and step.process.poll() is None]
        known = {} if force or not asked else self._slurm_ids()
        for step in asked:
            step.cancelled = True
            if step.name in known:
                _terminate(known[step.name])
            else:
                step.process.terminate()

    def _slurm_ids(self) -> dict[str, str]:
        """By name. A step that still waits for its node is not among them."""
        command = ["squeue", "--noheader", "--steps", f"--jobs={self._allocation.job}", "--format=%i %j"]
        return {
            name: slurm_id for slurm_id, _, name in (line.partition(" ") for line in slurm.ask(command).splitlines())
        }


def _terminate(slurm_id: str) -> None:
    try:
        slurm.ask(["scancel", "--signal=TERM", slurm_id])
    except JobError as fault:
        if not any(words in str(fault) for words in JUST_ENDED):
            raise


def stop_at(plan: Plan, end_time: float, now: float) -> float:
    """When a run that has started now begins to stop: before its workers drain by the clock, and the controller puts
    others in their places that would have no time left."""
    drain_s = max(planned.spec.drain_timeout_s for planned in plan.workers)
    return walltime_drain(now, end_time, drain_s + DRAIN_GRACE_S).at


# ---------------------------------------------------------------- what is started


def commands(run: RunDir, plan: Plan) -> dict[str, str]:
    """Step name -> the exact command line that starts it. Needs no Slurm."""
    return {
        job_name(planned.spec.run, planned.spec.worker, planned.spec.generation): shlex.join(
            step_command(run, planned, plan.allocation)
        )
        for planned in plan.workers
    }


def step_id(job: str, planned: PlannedWorker) -> str:
    """Our own: Slurm counts a job's steps anew when the job is requeued, and says a step's number to nobody at its
    start."""
    return f"{job}.{planned.spec.worker}.g{planned.spec.generation}"


def node_names(planned: PlannedWorker, allocation: Allocation | None) -> tuple[str, ...]:
    return tuple(
        f"{NODE}{use.node}" if allocation is None else allocation.nodes[use.node].name for use in planned.example
    )


def step_command(run: RunDir, planned: PlannedWorker, allocation: Allocation | None) -> list[str]:
    """--exact: only what is asked for here. Without a word on GPUs a step would take all of the job's, and without
    one on memory all of that."""
    spec, job = planned.spec, planned.job
    owner = JOB if allocation is None else allocation.job
    gpus = f"--gpus-per-node={job.gpus_per_node}" if job.gpus_per_node else f"--gres={job.slurm.get('gres', 'none')}"
    return [
        "srun",
        f"--jobid={owner}",
        f"--job-name={job_name(spec.run, spec.worker, spec.generation)}",
        "--exact",
        f"--nodes={job.num_nodes}",
        f"--ntasks={job.num_nodes}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(node_names(planned, allocation))}",
        f"--cpus-per-task={job.cpus_per_task}",
        gpus,
        f"--mem={job.mem_gb}GB" if job.mem_gb is not None else "--mem=0",
        "--kill-on-bad-exit=1",
        "--unbuffered",
        f"--output={run.log_dir(spec.worker)}/{step_id(owner, planned)}_%t_log.out",
        "--open-mode=append",
        *task_command(job, run.code_dir(spec.code)),
        "-m",
        "workers",
        str(run.worker_spec(spec.worker, spec.generation)),
    ]
