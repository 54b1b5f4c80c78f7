"""From a planned worker to a Slurm job, through submitit: the scripts, and handing them in.

Owns what a job's script says and the two functions that submitit runs in a job. Decides nothing about when
(see `reconcile`) and never asks submitit about a job again: its results are never waited for, and its view of
Slurm may be ten minutes old.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launcher.job import JobRequest, Plan, PlannedWorker
from launcher.jobs import CONTROLLER, JobError, Row, controller_name, job_name
from launcher.rundir import RunDir
from launcher.scheduler import slurm


def run_worker(spec_path: str) -> None:
    """The job's own function. It becomes the worker agent: submitit's signal handlers, which swallow SIGTERM and
    requeue on SIGUSR2, end with the exec, and Slurm's signals reach the agent itself."""
    os.execv(sys.executable, [sys.executable, "-m", "workers", spec_path])


def run_controller(run_dir: str) -> None:
    """The controller job's function."""
    os.execv(sys.executable, [sys.executable, "-m", "launcher.control.supervisor", run_dir])


def run_check(folder: str) -> None:
    """The function of a doctor's job, once per node."""
    os.execv(sys.executable, [sys.executable, "-m", "launcher.site.node_check", folder])


class SlurmJobs:
    """The jobs of one run in Slurm: a `JobSystem`."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self.look_every_s = plan.poll_interval_s
        self._run = run
        self._plan = plan

    def submit(self, planned: PlannedWorker) -> str:
        spec = planned.spec
        name = job_name(spec.run, spec.worker, spec.generation)
        path = self._run.worker_spec(spec.worker, spec.generation)
        return submit(self._run, planned.job, name, spec.worker, spec.code, run_worker, str(path))

    def rows(self) -> list[Row]:
        return slurm.run_rows(self._plan.run, self._run.path)

    def cancel(self, jobs: Sequence[str], *, force: bool) -> None:
        """Slurm kills by itself what outlives its KillWait, so `force` changes nothing."""
        slurm.cancel(jobs)


def submit_controller(run: RunDir, plan: Plan) -> str:
    """The first one's, or one that is to follow. Returns the job's id. Raises JobError."""
    assert plan.controller is not None
    name = controller_name(plan.run)
    return submit(run, plan.controller, name, CONTROLLER, plan.proxy.code, run_controller, str(run.path))


def submit(
    run: RunDir, job: JobRequest, name: str, log: str, code: str, function: Callable[[str], None], argument: str
) -> str:
    """Hand one job in. Raises JobError with Slurm's own words."""
    try:
        executor = _executor(SlurmExecutor, run, job, name, log, code)
        return str(executor.submit(function, argument).job_id)
    except (FailedJobError, FailedSubmissionError) as fault:
        words = f"sbatch refused job {name}: {fault}"
        raise JobError(words, transient=slurm.is_transient(words)) from None
    except FileNotFoundError:
        raise slurm.missing("sbatch") from None
    except RuntimeError as fault:
        if "srun" in str(fault):
            raise slurm.missing("srun") from None
        raise


def scripts(run: RunDir, plan: Plan) -> dict[str, str]:
    """Job name -> the exact script that is handed to sbatch for it. Needs no Slurm."""
    texts = {}
    if plan.controller is not None:
        name = controller_name(plan.run)
        texts[name] = _script(run, plan.controller, name, CONTROLLER, plan.proxy.code)
    for planned in plan.workers:
        spec = planned.spec
        name = job_name(spec.run, spec.worker, spec.generation)
        texts[name] = _script(run, planned.job, name, spec.worker, spec.code)
    return texts


class _ScriptWriter(SlurmExecutor):  # type: ignore[misc]
    """SlurmExecutor on a machine without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def _script(run: RunDir, job: JobRequest, name: str, log: str, code: str) -> str:
    writer = _executor(_ScriptWriter, run, job, name, log, code)
    return str(writer._make_submission_file_text(writer._submitit_command_str, ""))


def _executor(kind: type[Any], run: RunDir, job: JobRequest, name: str, log: str, code: str) -> Any:
    executor = kind(run.log_dir(log), python=shlex.quote(job.interpreter))
    executor.update_parameters(**_parameters(run.code_dir(code), job, name))
    return executor


def _parameters(code_dir: Path, job: JobRequest, name: str) -> dict[str, Any]:
    return {
        "job_name": name,
        "nodes": job.num_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": job.cpus_per_task,
        "gpus_per_node": job.gpus_per_node or None,
        "mem": f"{job.mem_gb}GB" if job.mem_gb is not None else None,
        "time": job.time_min,
        "stderr_to_stdout": True,
        "setup": [*job.setup, *_frame(code_dir)],
        # Slurm 22.05's srun takes no CPU count over from the job; one lost task ends the whole step.
        "srun_args": [f"--cpus-per-task={job.cpus_per_task}", "--kill-on-bad-exit=1"],
        # Python looks into the working directory first: it must not be the checkout that somebody edits.
        "additional_parameters": {"chdir": str(code_dir), **job.additional},
        **job.slurm,
    }


def _frame(code_dir: Path) -> list[str]:
    """After the site's set-up. Where a site wants jobs without the login shell's variables (--export=NONE), srun would
    take those of this script from its tasks as well. Without a trap the warning before the walltime would end the batch
    shell, and with it the job; the agent itself drains by the clock."""
    return [
        f"export PYTHONPATH={shlex.quote(str(code_dir))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "unset SLURM_EXPORT_ENV",
        "trap : USR1",
    ]
