"""A row where a node's network link is cut and comes back: no process hears of it, no connection is closed."""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict

from benchmarks.chaos.onebox import LINKS
from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import RUN, Stage, StageFault
from launcher.jobs import controller_name, parse_job_name, pool_of

CUT_S = 20.0
ON_NETWORKS = ("cluster.interface=eth0", "cluster.partition=spread", "controller.partition=spread")


def node_cut_off(stage: Stage) -> None:
    before = stage.serving()
    node = victim(stage)
    set_link(node, "down")
    try:
        time.sleep(CUT_S)
    finally:
        set_link(node, "up")
    stage.until(lambda: stage.serving().keys() == before.keys(), "all workers to serve again")


def victim(stage: Stage) -> str:
    """A node without the controller, where other nodes have workers of both roles."""
    pools: dict[str, set[str]] = defaultdict(set)
    controller = ""
    for row in stage.rows():
        if row.name == controller_name(RUN):
            controller = row.nodes
        elif (named := parse_job_name(RUN, row.name)) is not None:
            pools[row.nodes].add(pool_of(named[0]))
    for node in sorted(pools):
        others = set().union(*(there for name, there in pools.items() if name != node))
        if node != controller and others == {"prefill", "decode"}:
            return node
    raise StageFault(f"no node can be spared: the controller is on {controller}, workers are on {dict(pools)}")


def set_link(node: str, state: str) -> None:
    link = os.environ[LINKS] + node
    subprocess.run(["ip", "link", "set", link, state], check=True)


ROWS = {"node_cut_off": Row(node_cut_off, 4.0, ON_NETWORKS, networks=True)}
