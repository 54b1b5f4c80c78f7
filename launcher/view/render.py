"""A plan as text for people: GPU by GPU, job by job, then what they should know.

Pure text over a Plan; decides nothing. The scripts come from `submit` and are only set below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.job import JobRequest, Plan, PlannedWorker
from launcher.planning.capacity import GIB
from launcher.view.present import table

TITLES = {
    "slurm": "Slurm jobs",
    "steps": "Steps of one Slurm job",
    "local": "Processes on this machine",
}
NO_MEMORY = {"slurm": "the site's default", "steps": "the job's", "local": "this machine's"}


def render_plan(plan: Plan, scripts: Mapping[str, str]) -> str:
    engine = plan.workers[0].spec.engine
    parts = [
        f"run {plan.run} on {plan.cluster} ({plan.executor})\n"
        f"model {', '.join(plan.proxy.models)} from {engine.model_path}\n"
        f"engine {engine.kind} {engine.version or ''}".rstrip(),
        _gpus(plan),
        _jobs(plan),
        "\n".join(plan.notes),
    ]
    parts += [f"# ---- {name}\n{script.rstrip()}" for name, script in scripts.items()]
    return "\n\n".join(parts) + "\n"


def _gpus(plan: Plan) -> str:
    """Every GPU of the cluster, the unused ones too."""
    header = ("node", "GPUs", "worker", "role", "TP", "PP", "weights", "work", "KV", "KV tokens")
    rows: list[tuple[str, ...]] = []
    for node in range(plan.num_nodes):
        free = set(range(plan.gpus_per_node))
        for worker in plan.workers:
            for use in worker.example:
                if use.node == node:
                    rows.append((str(node), _numbers(use.gpus) or "CPU", *_worker_cells(worker)))
                    free -= set(use.gpus)
        if free:
            rows.append((str(node), _numbers(sorted(free)), "unused"))
    nodes = (
        "nodes in the order of the job's"
        if plan.executor == "steps"
        else "one way to place the workers; Slurm chooses the nodes"
    )
    title = f"GPU by GPU, memory per GPU ({nodes})"
    if not plan.gpus_per_node:
        title = "Workers, memory per rank"
    return f"{title}\n{_table(header, rows)}"


def _worker_cells(worker: PlannedWorker) -> tuple[str, ...]:
    spec, memory = worker.spec, worker.memory
    engine = spec.engine
    cells = (spec.worker, spec.role.value, str(engine.tensor_parallel), str(engine.pipeline_parallel))
    if memory is None:
        return (*cells, "simulated")
    sizes = (memory.weights_bytes, memory.workspace_bytes, memory.kv_bytes)
    return (*cells, *(f"{size / GIB:.1f} GiB" for size in sizes), str(memory.kv_tokens))


def _jobs(plan: Plan) -> str:
    jobs = [worker.job for worker in plan.workers] + ([plan.controller] if plan.controller else [])
    header = ("job", "nodes", "GPUs/node", "CPUs/node", "memory/node", "minutes", "partition")
    table = _table(header, [_job_cells(job) for job in jobs])
    where = "" if plan.controller else "\ncontroller and proxy: in the foreground"
    return f"{TITLES[plan.executor]}\n{table}{where}"


def _job_cells(job: JobRequest) -> tuple[str, ...]:
    return (
        job.name,
        str(job.num_nodes),
        str(job.slurm.get("gres", job.gpus_per_node)),
        str(job.cpus_per_task),
        NO_MEMORY[job.executor] if job.mem_gb is None else f"{job.mem_gb} GB",
        str(job.time_min),
        job.slurm.get("partition", "the site's default"),
    )


def _numbers(gpus: Sequence[int]) -> str:
    return " ".join(map(str, gpus))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A row may end early."""
    return "\n".join(table([header, *((*row, *[""] * (len(header) - len(row))) for row in rows)]))
