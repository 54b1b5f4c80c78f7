"""The Slurm job around a run that has just one: what it holds, node by node.

Owns the question to Slurm and how its answer is read. Whether a plan fits into the job is `fit`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from launcher.job import AllocatedNode, Allocation
from launcher.jobs import JobError
from launcher.scheduler import slurm

# Of `scontrol show job --details`: one per group of nodes that hold the same.
NODES = re.compile(r"\bNodes=(\S+) CPU_IDs=(\S+) Mem=(\d+) GRES=(\S*)")
GPUS = re.compile(r"\bgpu(?::[^:,(]+)?:(\d+)")
END = re.compile(r"\bEndTime=(\S+)")
INTERACTIVE = " BatchFlag=0 "


def read_allocation(job: str) -> Allocation | None:
    """What a batch job holds; None for another kind, which does not end with the process that started it. Raises
    JobError."""
    told = slurm.ask(["scontrol", "show", "job", "--details", "--oneliner", job])
    return None if INTERACTIVE in told else parse_allocation(job, told, _hostnames)


def _hostnames(group: str) -> list[str]:
    return slurm.ask(["scontrol", "show", "hostnames", group]).split()


def parse_allocation(job: str, told: str, hostnames: Callable[[str], Sequence[str]]) -> Allocation:
    """Raises JobError where Slurm's words are not understood."""
    groups, end = NODES.findall(told), END.search(told)
    if not groups or end is None:
        raise JobError(f"scontrol said something unexpected of job {job}: {told!r}")
    nodes = [
        AllocatedNode(
            name=name,
            cpus=_count(cpu_ids),
            gpus=sum(map(int, GPUS.findall(gres))),
            mem_mb=int(mem) or None,
        )
        for group, cpu_ids, mem, gres in groups
        for name in hostnames(group)
    ]
    return Allocation(job=job, nodes=tuple(nodes), end_time=slurm.parse_time(end[1]))


def _count(ids: str) -> int:
    """Of `0-3,8`."""
    ranges = (part.partition("-") for part in ids.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
