"""`action=doctor`: what a site is like, and what to write into `conf/cluster`.

Thin: puts together `probe`, the judges and `table`. Returns the exit status: 0 where there is no fault.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from launcher.job import Plan
from launcher.planning.models import ResolvedModel
from launcher.refusal import Refused
from launcher.rundir import RunDir, snapshot_code
from launcher.scheduler.submit import scripts
from launcher.schema import Config, Executor, Output
from launcher.site.accounts import account_findings
from launcher.site.check_run import CheckRun
from launcher.site.checks import HERE, Outcome, check_job, check_partitions
from launcher.site.facts import Site
from launcher.site.finding import Finding, Report, fault, ok, warning
from launcher.site.machine import machine_findings
from launcher.site.nodes import node_findings
from launcher.site.partitions import fit_findings, partition_findings, workers_partition
from launcher.site.policies import memory_finding, policy_findings, preemption_findings, slurm_findings
from launcher.site.probe import ask_slurm, look_around, try_request
from launcher.site.table import show
from launcher.site.trials import gpu_requests, gpu_style_finding, job_findings, trial_command
from launcher.start import plan_run
from launcher.view.progress import Progress
from workers.spec import write_json

INTERRUPTED = 130


def doctor(config: Config) -> int:
    run = _folder(config)
    runs_dir = str(run.path.parent)
    site = Site() if _is_local(config) else ask_slurm()
    plan, model, refusals = _planned(config)
    submits = config.submit and plan is not None and (site.answers or _is_local(config))
    findings = [
        *(() if _is_local(config) else slurm_findings(site)),
        *refusals,
        *(partition_findings(site) if config.cluster is None else _against_plan(config, site, plan, run)),
        *machine_findings(look_around([runs_dir]), config, runs_dir, sys.prefix, proven=submits),
    ]
    outcomes: list[Outcome] = []
    interrupted = False
    if submits:
        assert plan is not None and model is not None
        outcomes, interrupted = _checked(config, plan, model, site, run)
        findings += [each for outcome in outcomes for each in node_findings(outcome, config)]
    elif config.submit:
        findings.append(warning("job", "no job was submitted", "what is a fault above comes first"))
    report = Report(
        cluster=config.cluster.name if config.cluster else None,
        slurm_version=site.version,
        submitted=submits,
        jobs=tuple(outcome.job for outcome in outcomes if outcome.job),
        findings=tuple(findings),
    )
    _tell(report, config, run)
    return INTERRUPTED if interrupted else 1 if report.faults else 0


def _tell(report: Report, config: Config, run: RunDir) -> None:
    path = run.path / "doctor.json"
    write_json(path, report)
    if config.output is Output.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        show(report)
        print(f"\n{path}")
        if config.cluster is None:
            print("next: python -m launcher action=new-cluster name=NAME")
        elif not report.submitted and not report.faults:
            print(f"next: python -m launcher action=doctor +cluster={config.cluster.name} submit=true")


def _planned(config: Config) -> tuple[Plan | None, ResolvedModel | None, list[Finding]]:
    if config.cluster is None:
        return None, None, []
    try:
        _, plan, model = plan_run(config)
    except Refused as refused:
        return None, None, [_refusal(line) for line in refused.faults]
    if model.missing is None or config.engine.simulated:
        return plan, model, []
    if model.generator is not None:
        return plan, model, [ok("model", f"{config.model.name} is made when a run starts first")]
    return plan, model, [warning("model", model.missing, "do as it says before a run is started")]


def _refusal(line: str) -> Finding:
    """`key: what is wrong; what to do`."""
    seen, _, todo = line.rpartition("; ")
    return fault("configuration", seen or line, todo if seen else "change it, then run this again")


def _against_plan(config: Config, site: Site, plan: Plan | None, run: RunDir) -> Iterator[Finding]:
    assert config.cluster is not None
    if not site.answers:
        return
    yield from policy_findings(site, config)
    yield from fit_findings(site, config, plan)
    yield from account_findings(site, config, plan)
    partition = workers_partition(site, config.cluster)
    if partition is not None:
        yield from preemption_findings(site, config, partition)
        yield from memory_finding(site, config.cluster, partition)
        yield from _gpu_style(config, site, partition.name)
        if plan is not None and plan.executor == "slurm":
            yield from _jobs(plan, run)


def _checked(config: Config, plan: Plan, model: ResolvedModel, site: Site, run: RunDir) -> tuple[list[Outcome], bool]:
    """The jobs' outcomes, and whether somebody did not want to wait for all of them."""
    for folder in (run.logs, run.code):
        folder.mkdir(mode=0o700, exist_ok=True)
    checks = CheckRun(run, snapshot_code(run), config.controller.poll_interval_s, Progress(_messages()))
    if not _is_local(config):
        checks.cancel_earlier()
    interrupted = False
    try:
        for partition in check_partitions(config, site):
            files = str(run.path / "checks" / (partition or HERE))
            checks.start(check_job(config, plan, site, partition, files, secrets.token_hex(16), model.missing is None))
        checks.wait(config.timeout_s)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        checks.leave()
    return checks.outcomes, interrupted


def _messages() -> Console:
    """What happens meanwhile is no part of the answer, which may be JSON."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _gpu_style(config: Config, site: Site, partition: str) -> Iterator[Finding]:
    cluster = config.cluster
    assert cluster is not None
    if not cluster.gpus_per_node:
        return
    requests = gpu_requests(cluster, sorted(site.gpus_of(partition)))
    answers = {
        setting: try_request(trial_command(partition, cluster, options)) for setting, options in requests.items()
    }
    yield gpu_style_finding(cluster, answers)


def _jobs(plan: Plan, run: RunDir) -> Iterator[Finding]:
    """One script per pool and the controller's: workers of a pool differ by name only."""
    texts = scripts(run, plan)
    names = {worker.spec.pool: worker.job.name for worker in reversed(plan.workers)}
    chosen = {f"{name}.g0" for name in names.values()} | ({plan.controller.name} if plan.controller else set())
    folder = run.path / "scripts"
    folder.mkdir(mode=0o700, exist_ok=True)
    answers = {}
    for name, text in texts.items():
        if name in chosen:
            path = folder / f"{name}.sh"
            path.write_text(text)
            answers[name] = try_request(["sbatch", "--test-only", str(path)])
    yield from job_findings(answers)


def _folder(config: Config) -> RunDir:
    """A run's name has no underscore: this folder is nobody's run."""
    name = config.cluster.name if config.cluster is not None else "site"
    run = RunDir(Path(config.runs_dir).expanduser().resolve() / f"doctor_{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}")
    run.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    run.path.chmod(0o700)
    return run


def _is_local(config: Config) -> bool:
    return config.cluster is not None and config.cluster.executor is Executor.local
