"""Real vLLM jobs on a real Slurm: tensor parallel over two nodes, KV between jobs, two runs side by side."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.rundir import RunDir
from launcher.scheduler import slurm
from tests.e2e.test_vllm_answers import prompt
from tests.launching import launch, nothing_left
from tests.live import wait_for
from tests.onebox import OneBox
from workers.agent.local_folder import PREFIX

pytestmark = [pytest.mark.slurm, pytest.mark.vllm, pytest.mark.timeout(900)]

# The prefill engine is one tensor-parallel pair over two nodes; each decode engine is a job of its own.
REAL = (
    "+cluster=onebox",
    "run=real",
    "pools.prefill.tensor_parallel=2",
    "pools.prefill.nodes=2",
    "pools.prefill.gpus_per_node=1",
    "routing=least_loaded",  # splits whatever it costs
    "timeout_s=600",
)
SIM = ("+cluster=onebox", "run=sim", "engine=sim", "pools.decode.replicas=1", "routing=least_loaded")


@pytest.fixture
def runs(tmp_path: Path, onebox: OneBox) -> Iterator[dict[str, RunDir]]:
    """At the end Slurm holds nothing, and no process of theirs is left."""
    found = {name: RunDir(tmp_path / "runs" / name) for name in ("real", "sim")}
    try:
        with nothing_left(found["real"]), nothing_left(found["sim"]):
            yield found
    finally:
        for name, run in found.items():
            slurm.cancel([row.job for row in slurm.run_rows(name, run.path) if not row.ended])
        wait_for(lambda: onebox.jobs() == [], "Slurm to be empty", 60)


class Endpoint:
    """What a user has: `endpoint.json`."""

    def __init__(self, run: RunDir) -> None:
        fields = json.loads(run.endpoint.read_text())
        self.url = fields["url"]
        self._headers = {"authorization": f"Bearer {Path(fields['api_key_file']).read_text()}"}

    def complete(self, text: str) -> httpx.Response:
        body = {"model": "tiny", "prompt": text, "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{self.url}/completions", json=body, headers=self._headers, timeout=120)
        return answer.raise_for_status()

    def fleet(self) -> dict[str, Any]:
        answer = httpx.get(self.url.removesuffix("/v1") + "/fleet", headers=self._headers)
        fleet: dict[str, Any] = answer.raise_for_status().json()
        return fleet


def test_real_engines_in_slurm_jobs_beside_another_run(tmp_path: Path, runs: dict[str, RunDir], onebox: OneBox) -> None:
    before = folders_left()
    up = launch(tmp_path, *REAL, timeout_s=700)
    assert up.returncode == 0, up.stdout + up.stderr
    beside = launch(tmp_path, *SIM)
    assert beside.returncode == 0, beside.stdout + beside.stderr

    jobs = dict(line.split() for line in onebox.ask("squeue", "--noheader", "--format=%j %D").splitlines())
    assert {name: nodes for name, nodes in jobs.items() if name.startswith("real.")} == {
        "real.controller": "1",
        "real.prefill-0.g0": "2",
        "real.decode-0.g0": "1",
        "real.decode-1.g0": "1",
    }, "tensor parallel over two nodes is one job of two nodes"

    real, sim = Endpoint(runs["real"]), Endpoint(runs["sim"])
    served = {real.complete(prompt(seed, 120)).headers["x-sluice-decode"] for seed in range(4)}
    assert served == {"decode-0", "decode-1"}
    assert real.complete(prompt(9, 120)).headers["x-sluice-prefill"] == "prefill-0"
    assert sim.complete(prompt(9, 120)).headers["x-sluice-prefill"] == "prefill-0"
    received = {w["worker"]: w["kv_tokens_received"] for w in real.fleet()["workers"]}
    assert received["decode-0"] > 100 and received["decode-1"] > 100
    assert len(real.fleet()["workers"]) == 3 and len(sim.fleet()["workers"]) == 2, "the runs do not meet"
    assert not real.fleet()["refusals"] and not sim.fleet()["refusals"]

    for name in ("sim", "real"):
        stopped = launch(tmp_path, "action=stop", f"run={name}")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert onebox.jobs() == []
    assert folders_left() <= before, "node-local folders go with their workers"


def folders_left() -> set[Path]:
    """Of agents that are gone: those of other tests' agents, which live, are locked."""
    left = set()
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # gone meanwhile, or locked
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.add(folder)
            finally:
                os.close(descriptor)
    return left
