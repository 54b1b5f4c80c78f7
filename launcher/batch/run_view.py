"""A run as the client of a batch sees it: where to ask, with which key, and whether anybody will answer.

Owns nothing: it reads the run's folder.
"""

from __future__ import annotations

import time

import msgspec

from launcher.batch.http_pool import Target
from launcher.batch.meter import gpu_seconds
from launcher.control.ownership import living_owner
from launcher.job import Plan
from launcher.keys import api_key_file, batch_key_file
from launcher.rundir import RunDir, read_optional
from launcher.view.run_status import RunStatus


class Seen(msgspec.Struct, frozen=True):
    """`gpu_s`: what its jobs have taken. `ended`: why nobody will answer any more, "" as long as somebody may."""

    gpu_s: float = 0.0
    ended: str = ""


class RunView:
    """A run as its client sees it, through its folder, `since` a unix time. Its calls may block."""

    def __init__(self, run: RunDir, plan: Plan, since: float) -> None:
        self._run = run
        self._since = since
        self._plan = plan
        self._nobody_keeps_it = plan.controller is None and not plan.chain_length  # in a job, it would come again
        self._gpus = {p.spec.worker: p.spec.gpus_per_node * p.spec.num_nodes for p in plan.workers}

    def locate(self) -> Target:
        status = read_optional(self._run.status, RunStatus)
        url = status.url if status is not None else ""
        key = batch_key_file(self._run.keys)
        path = key if key.exists() else api_key_file(self._run.keys)  # of a run that is older than such keys
        return Target(url.removesuffix("/v1"), path.read_text().strip(), self._plan.proxy.tls_cert)

    def look(self) -> Seen:
        status = read_optional(self._run.status, RunStatus)
        gpu_s = gpu_seconds(self._run.read_jobs(), self._gpus, self._since, time.time())
        if status is None:
            return Seen(gpu_s)
        why = f"{status.failure.name}: {status.failure.reason}" if status.failure is not None else ""
        if status.ended or why:
            return Seen(gpu_s, f"the run has ended{why and f': {why}'}")
        lost = self._nobody_keeps_it and living_owner(self._run) is None
        return Seen(gpu_s, "the run's controller is gone, and nobody starts another one" if lost else "")
