"""Rows where a node's network link is cut and comes back: no process hears of it, no connection is closed.

Each worker takes all GPUs of a node: the one that is cut off holds one worker, and no other.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from benchmarks.chaos.onebox import LINKS
from benchmarks.chaos.preemption_rows import GPUS_PER_NODE
from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import RUN, Stage, StageFault
from launcher.jobs import controller_name, parse_job_name, pool_of

CUT_S = 20.0
POOLS = ("prefill", "decode")


def cut_off(pool: str) -> Callable[[Stage], None]:
    def happen(stage: Stage) -> None:
        before = stage.serving()
        node = victim(stage, pool)
        set_link(node, "down")
        try:
            time.sleep(CUT_S)
        finally:
            set_link(node, "up")
        stage.until(lambda: stage.serving().keys() == before.keys(), "all workers to serve again")

    return happen


def victim(stage: Stage, pool: str) -> str:
    """The node of a worker of the pool, without the controller: of two such nodes there is one."""
    nodes, controllers = set(), set()
    for row in stage.rows():
        if row.name == controller_name(RUN):
            controllers.add(row.nodes)
        elif (named := parse_job_name(RUN, row.name)) is not None and pool_of(named[0]) == pool:
            nodes.add(row.nodes)
    if not nodes - controllers:
        raise StageFault(f"no node can be spared: the controller is on {controllers}, {pool} on {nodes}")
    return min(nodes - controllers)


def set_link(node: str, state: str) -> None:
    link = os.environ[LINKS] + node
    subprocess.run(["ip", "link", "set", link, state], check=True)


def arguments(pool: str) -> tuple[str, ...]:
    """Two workers of that pool and one of the other, each on a node of its own."""
    replicas = (f"pools.{name}.replicas={2 if name == pool else 1}" for name in POOLS)
    whole_nodes = (f"pools.{name}.tensor_parallel={GPUS_PER_NODE}" for name in POOLS)
    return ("cluster.interface=eth0", *replicas, *whole_nodes)


ROWS = {f"node_cut_off_{pool}": Row(cut_off(pool), 4.0, arguments(pool), networks=True) for pool in POOLS}
