"""Rows where Slurm takes a worker's place for somebody else's job, with and without a time of grace."""

from __future__ import annotations

from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import Stage
from launcher.jobs import controller_name
from launcher.scheduler import slurm

GPUS_PER_NODE = 4
OTHERS = "gpu"  # the partition that goes before
COMMAND = ("sbatch", "--parsable", f"--partition={OTHERS}", "--ntasks=1", "--output=/dev/null", "--wrap=sleep 1000")


def preempted(stage: Stage) -> None:
    """One GPU more than is free on the node of a decode worker; Slurm chooses whose."""
    before = stage.serving()
    job = stage.job("decode-0")
    workers = [row for row in stage.rows() if not row.name.endswith(controller_name(""))]
    node = next(row.nodes for row in workers if row.job == job)
    num_gpus = GPUS_PER_NODE - sum(row.nodes == node for row in workers) + 1
    preemptor = slurm.ask([*COMMAND, f"--nodelist={node}", f"--gres=gpu:{num_gpus}"]).strip()
    try:
        stage.until(lambda: followed(before, stage.serving()), "a successor of the one that was preempted")
    finally:
        slurm.cancel([preemptor])


def followed(before: dict[str, int], now: dict[str, int]) -> bool:
    return before.keys() == now.keys() and any(now[worker] > generation for worker, generation in before.items())


def arguments(partition: str) -> tuple[str, ...]:
    return (f"cluster.partition={partition}", f"controller.partition={OTHERS}")


ROWS = {
    "preempted_with_grace": Row(preempted, 1.0, arguments("low")),
    "preempted_at_once": Row(preempted, 1.0, arguments("lowest")),
}
