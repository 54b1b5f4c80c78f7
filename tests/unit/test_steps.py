"""A run inside one Slurm job: what Slurm says of that job, whether a plan fits into it, and the steps' commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.job import AllocatedNode, Allocation
from launcher.jobs import JobError
from launcher.rundir import RunDir
from launcher.scheduler import slurm
from launcher.scheduler.allocation import parse_allocation, read_allocation
from launcher.scheduler.steps import StepJobs, commands, step_command, stop_at
from launcher.view.render import render_plan
from tests.live import wait_for
from tests.unit.planning import planned, refusals
from workers.agent.walltime import walltime_drain

STEPS = ("+cluster=h100x2", "cluster.executor=steps", "controller.where=foreground", "action=plan")
SIMULATED = planned(*STEPS, "engine=sim")
# As Slurm 22.05 prints them, shortened: a whole one, one that asked for --gpus=3, one without GPUs or memory.
WHOLE = "JobId=4 BatchFlag=1 EndTime=2026-01-01T12:00:00 Nodes=n[1-2] CPU_IDs=0-7 Mem=20000 GRES=gpu:fake:4(IDX:0-3)"
UNEVEN = (
    "JobId=6 BatchFlag=2 EndTime=2026-01-01T12:00:00 NumNodes=2 ReqNodeList=(null) NodeList=n[1,3]"
    " Nodes=n1 CPU_IDs=1-3,8 Mem=8192 GRES=nic:1,gpu:h100:2(IDX:2-3),gpu:1(IDX:0) Nodes=n3 CPU_IDs=2 Mem=8192 GRES="
)
BARE = "JobId=7 BatchFlag=1 EndTime=Unknown Nodes=n2 CPU_IDs=0-2 Mem=0 GRES="


def parsed(told: str) -> Allocation:
    names = {"n[1-2]": ["n1", "n2"], "n1": ["n1"], "n2": ["n2"], "n3": ["n3"]}
    return parse_allocation("4", told, names.__getitem__)


def allocation(*nodes: AllocatedNode) -> Allocation:
    return Allocation(job="12", nodes=nodes, end_time=None)


def node(name: str, cpus: int = 96, gpus: int = 8, mem_mb: int | None = 960 << 10) -> AllocatedNode:
    return AllocatedNode(name=name, cpus=cpus, gpus=gpus, mem_mb=mem_mb)


# ---------------------------------------------------------------- what the job holds


def test_what_slurm_says_of_a_job_node_by_node() -> None:
    whole = parsed(WHOLE)
    assert whole.nodes == (node("n1", 8, 4, 20000), node("n2", 8, 4, 20000))
    assert whole.end_time == slurm.parse_time("2026-01-01T12:00:00")
    assert parsed(UNEVEN).nodes == (node("n1", 4, 3, 8192), node("n3", 1, 0, 8192))
    assert parsed(BARE) == Allocation(job="4", nodes=(node("n2", 3, 0, None),), end_time=None)


@pytest.mark.parametrize("told", ["", "JobId=4 BatchFlag=1 EndTime=Unknown", WHOLE.replace("EndTime", "Ends")])
def test_what_is_not_understood_is_an_error(told: str) -> None:
    with pytest.raises(JobError, match="something unexpected of job 4"):
        parsed(told)


def test_only_a_batch_job_holds_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"job": WHOLE.replace("BatchFlag=1", "BatchFlag=0"), "hostnames": "n1\nn2\n"}
    monkeypatch.setattr(slurm, "ask", lambda command: answers[command[2]])
    assert read_allocation("4") is None
    answers["job"] = WHOLE
    assert read_allocation("4") == parsed(WHOLE)


# ---------------------------------------------------------------- whether the plan fits


def test_a_plan_that_fits_knows_its_job() -> None:
    held = allocation(node("n1"), node("n2"))
    assert planned(*STEPS, "action=up", allocation=held).allocation == held
    larger = allocation(node("n1", cpus=200, mem_mb=None), node("n2"), node("n3"))
    assert planned(*STEPS, allocation=larger).allocation == larger


def test_all_that_a_job_lacks_is_told_at_once() -> None:
    faults = refusals(*STEPS, allocation=allocation(node("n1", cpus=64, gpus=4, mem_mb=500 << 10)))
    assert faults == (
        "cluster.nodes: the workers take 2 nodes, job 12 has 1; use sbatch --nodes=2, or fewer workers",
        "cluster.gpus_per_node: prefill-0 take 8 GPUs, n1 of job 12 has 4;"
        " use sbatch --gpus-per-node=8, or fewer workers",
        "cluster.cpus_per_node: prefill-0, controller take 96 CPUs, n1 of job 12 has 64;"
        " use sbatch --cpus-per-task=96, or set cluster.cpus_per_node=64",
        "cluster.mem_gb: prefill-0, controller take 960 GB, n1 of job 12 has 500;"
        " use sbatch --mem=960G, or set cluster.mem_gb=500",
    )


def test_advice_that_is_followed_leads_to_a_plan() -> None:
    held = allocation(node("n1", cpus=64, mem_mb=500 << 10), node("n2", cpus=64, mem_mb=500 << 10))
    assert planned(*STEPS, "cluster.cpus_per_node=64", "cluster.mem_gb=500", allocation=held)


def test_no_share_is_advised_that_would_not_fit_either() -> None:
    """Nobody gets less than one CPU and one GB: of eight GPUs, and of a job with too little for them."""
    held = allocation(node("n1", cpus=5, mem_mb=6 << 10), node("n2"))
    apart = [f"pools.{pool}.{key}" for pool in ("prefill", "decode") for key in ("tensor_parallel=1", "replicas=4")]
    apart += ["engine=sim"]
    cpus, mem_gb = refusals(*STEPS, *apart, allocation=held)
    assert cpus.endswith("use sbatch --cpus-per-task=90, or fewer workers")
    assert mem_gb.endswith("use sbatch --mem=956G, or fewer workers")
    enough = allocation(node("n1", cpus=10, mem_mb=12 << 10), node("n2"))
    assert planned(*STEPS, *apart, "cluster.cpus_per_node=10", "cluster.mem_gb=12", allocation=enough)


def test_without_figures_of_memory_none_is_checked() -> None:
    held = allocation(node("n1", mem_mb=4 << 10), node("n2", mem_mb=4 << 10))
    assert planned(*STEPS, "cluster.mem_gb=null", allocation=held)


def test_steps_start_in_a_batch_job_only() -> None:
    assert refusals(*STEPS, "action=up") == (
        "cluster.executor: steps runs inside a batch job; use sbatch slurm/one_allocation.sbatch",
    )
    apart = ["+cluster=h100x2", "cluster.executor=steps", "action=plan"]
    assert refusals(*apart) == (
        "controller.where: with executor steps it runs in the same job as the workers; use foreground",
    )


# ---------------------------------------------------------------- what is started


def test_the_plan_of_one_job(golden: Callable[[str, str], None]) -> None:
    plan = planned(*STEPS)
    golden("plan_steps.txt", render_plan(plan, commands(RunDir(Path(plan.run_dir)), plan)))


def test_the_command_that_the_plan_shows_asks_for_what_its_workers_take() -> None:
    plan = planned(*STEPS, "cluster.gres=gpu:h100", "cluster.account=me", "cluster.sbatch.exclusive=true")
    [note] = [note for note in plan.notes if note.startswith("one job that holds it")]
    assert note == (
        "one job that holds it: sbatch --nodes=2 --ntasks-per-node=1 --cpus-per-task=96 --gres=gpu:h100:8 --mem=960G"
        " --time=480 --account=me --exclusive slurm/one_allocation.sbatch and the arguments of this plan"
    )
    assert "--gres=gpu:h100:8" in step_command(RunDir(Path(plan.run_dir)), plan.workers[0], None)


def test_a_worker_over_two_nodes_is_one_step_on_its_nodes() -> None:
    held = allocation(node("n1"), node("n7"))
    split = ["pools.decode.nodes=2", "pools.decode.tensor_parallel=4", "pools.prefill.tensor_parallel=1"]
    plan = planned(*STEPS, "engine=sim", *split, allocation=held)
    command = step_command(RunDir(Path(plan.run_dir)), plan.workers[1], held)
    for option in ("--jobid=12", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=n1,n7"):
        assert option in command
    assert "--gpus-per-node=2" in command and "--exact" in command


def test_a_worker_without_gpus_takes_none_of_the_job() -> None:
    plan = planned("+cluster=onebox", "engine=sim", "cluster.gpus_per_node=0", *STEPS[1:])
    command = step_command(RunDir(Path(plan.run_dir)), plan.workers[0], None)
    assert "--gres=none" in command and "--mem=0" in command


@settings(deadline=None)
@given(life_s=st.floats(1, 1e7), later_s=st.floats(0, 1e7), drain_s=st.floats(0, 1e5))
def test_the_run_stops_before_its_workers_drain_by_the_clock(life_s: float, later_s: float, drain_s: float) -> None:
    plan = SIMULATED
    first = plan.workers[0]
    first = msgspec.structs.replace(first, spec=msgspec.structs.replace(first.spec, drain_timeout_s=drain_s))
    plan = msgspec.structs.replace(plan, workers=(first,))
    of_workers = walltime_drain(min(later_s, life_s), life_s, drain_s).at
    assert 0 <= stop_at(plan, life_s, 0.0) <= of_workers


# ---------------------------------------------------------------- an srun that ends


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], StepJobs]:
    """Steps whose `srun` is a shell script, and a Slurm that does not know them (yet)."""

    def with_script(script: str) -> StepJobs:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in {"srun": script, "squeue": "true"}.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o700)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        run = RunDir(tmp_path / "run")
        run.create()
        return StepJobs(run, allocation(node("n1"), node("n2")))

    return with_script


def started(jobs: StepJobs) -> str:
    return jobs.submit(planned(*STEPS, "run=demo", allocation=allocation(node("n1"), node("n2"))).workers[1])


@pytest.mark.parametrize(
    ("script", "state", "reason"),
    [("exit 0", "COMPLETED", ""), ("exit 3", "FAILED", "srun ended with status 3")],
)
def test_how_a_step_ends_is_how_its_srun_ends(
    srun: Callable[[str], StepJobs], tmp_path: Path, script: str, state: str, reason: str
) -> None:
    jobs = srun(f"echo out of order; {script}")
    step = started(jobs)
    assert step == "12.decode-0.g0"
    wait_for(lambda: jobs.rows()[0].ended, "the step to end", 10)
    [row] = jobs.rows()
    assert (row.job, row.name, row.state, row.reason, row.nodes) == (step, "demo.decode-0.g0", state, reason, "n2")
    [log] = (tmp_path / "run" / "logs" / "decode-0").iterdir()
    assert (log.name, log.read_text()) == ("12.decode-0.g0_0_log.out", "out of order\n")


def test_a_step_that_slurm_has_not_placed_yet_is_cancelled_by_its_srun(srun: Callable[[str], StepJobs]) -> None:
    jobs = srun("exec sleep 1000")
    step = started(jobs)
    assert jobs.rows()[0].state == "RUNNING"
    jobs.cancel([step, "12.other.g0"], force=False)
    wait_for(lambda: jobs.rows()[0].state == "CANCELLED", "the step to end", 10)
    jobs.cancel([step], force=True)
