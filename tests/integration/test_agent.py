"""A worker agent by itself, as Slurm starts it, without a proxy: how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.live import Live, replaced, sim_engine, wait_for
from workers.agent.lifecycle import DRAINING, LOADING, READY, STARTING, STOPPED
from workers.agent.network import PORT_ATTEMPTS, derived_port
from workers.spec import HandoffSpec

LOAD_S = 0.2
LIFE_S = 16  # half of it is more than enough to load


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Live]:
    started = Live(tmp_path / "run")
    try:
        yield started
    finally:
        started.stop()


def test_it_drains_by_itself_before_its_job_ends(run: Live) -> None:
    now = int(time.time())
    times = {"SLURM_JOB_START_TIME": str(now - 2), "SLURM_JOB_END_TIME": str(now + LIFE_S)}
    run.start_worker("decode-0", sim_engine(args={"load_time_s": LOAD_S}), SLURM_JOB_ID="77", **times)
    assert run.processes["decode-0"].wait(60) == 0
    told = [line.split("sluice.agent: ")[1] for line in run.log("decode-0").splitlines() if "sluice.agent: " in line]
    told = [line for line in told if not line.startswith("removed ")]  # what tests before have killed
    assert told[0].startswith("the job's walltime ends in ")
    assert [line.split(":")[0] for line in told[1:]] == [
        STARTING,
        *(LOADING, LOADING, "the start took"),
        *(READY, DRAINING, STOPPED),
    ]
    stages = dict(re.findall(r"(\S+) ([\d.]+) s", told[4].partition(": ")[2]))
    assert list(stages) == ["environment", "preflight", "import", "load"]
    assert float(stages["load"]) >= LOAD_S
    assert told[-2:] == ["draining: walltime", "stopped: walltime"]


def test_an_engine_that_fails_at_start_ends_it_with_the_reason(run: Live) -> None:
    run.start_worker("decode-0", replaced(sim_engine(), args={"fail_at_start": "no memory for the weights"}))
    assert run.processes["decode-0"].wait(60) == 1
    _, story = run.log("decode-0").split("failed: the engine process ended by itself while loading", 1)
    assert "no memory for the weights" in story


def test_everything_that_keeps_an_engine_from_starting_is_told_at_once(run: Live) -> None:
    """A vLLM worker on a machine that is not what its plan says: nothing is loaded, and no engine process starts."""
    nixl = HandoffSpec(connector="NixlConnector", buffer_device="cuda", lease_s=120.0, redeem_s=30.0)
    engine = sim_engine(kind="vllm", device="cuda", version="0.1", model_path=str(run.path / "model"), handoff=nixl)
    (run.path / "cache").write_text("a file is in the way of the folder")
    broken = run.path / "broken"
    broken.mkdir()
    (broken / "nixl.py").write_text("raise ImportError('libucp.so.0: cannot open shared object file')")
    path = {"PYTHONPATH": f"{broken}:{os.environ.get('PYTHONPATH', '')}"}
    run.start_worker("decode-0", engine, interface="ib7", gpus_per_node=2, **path)
    assert run.processes["decode-0"].wait(60) == 1
    _, story = run.log("decode-0").split("failed: ", 1)
    told = story.splitlines()
    assert told[0].startswith("cluster.interface: ")
    assert " has no interface ib7 with an IPv4 address; set it to one of lo" in told[0]
    assert [line.split(": ")[0] for line in told[1:6]] == [
        "engine.version",
        "handoff.connector",
        "cluster.gres",
        "model.path",
        "cluster.cache_dir",
    ]
    assert f"is installed for {sys.executable}, the plan was made for 0.1" in told[1]
    assert "cannot import: ImportError: libucp.so.0: cannot open shared object file; see README.md" in told[2]
    assert "there is no NVIDIA driver" in told[3]
    assert f"{run.path}/model: No such file or directory" in told[4]
    assert "loading" not in run.log("decode-0")


def test_a_node_on_which_every_port_is_taken_is_told(run: Live) -> None:
    now = int(time.time())
    job = {"SLURM_JOB_ID": "78", "SLURM_JOB_START_TIME": str(now), "SLURM_JOB_END_TIME": str(now + 600)}
    with ExitStack() as taken:
        for attempt in range(PORT_ATTEMPTS):
            holder = taken.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else an old connection keeps it for a while
            with suppress(OSError):  # somebody else has it
                holder.bind(("127.0.0.1", derived_port("78", 0, attempt, "handoff")))
        run.start_worker("decode-0", sim_engine(), **job)
        assert run.processes["decode-0"].wait(60) == 1
    _, story = run.log("decode-0").split("failed: ", 1)
    assert story.startswith(f"none of {PORT_ATTEMPTS} ports for handoff ") and "see what holds them" in story


def test_a_worker_that_is_stopped_while_it_looks_around_stops(run: Live) -> None:
    """The probe's prefix hangs; the agent does not, and nothing of the prefix is left."""
    duration = f"1{os.getpid()}"
    run.start_worker("decode-0", sim_engine(prefix=("sh", "-c", f'sleep {duration}; exec "$@"', "sh")))
    wait_for(lambda: "starting: preflight" in run.log("decode-0"), "the preflight")
    run.processes["decode-0"].send_signal(signal.SIGTERM)
    assert run.processes["decode-0"].wait(30) == 0
    assert "stopped: SIGTERM" in run.log("decode-0")
    assert duration not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_a_drain_is_as_short_as_what_slurm_leaves(run: Live, tmp_path: Path) -> None:
    """Slurm's commands are scripts here: a signal of a person's while the job runs on, then one of `scancel`."""
    (state := tmp_path / "state").write_text("RUNNING N/A")
    for name, script in {"squeue": f"cat {state}", "scontrol": "echo 'KillWait = 4 sec'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o700)
    slurm = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    slow = sim_engine(args={"timing": {"decode_ms": [0, 0, 200]}})
    run.start_worker("decode-0", slow, drain_timeout_s=600.0, **slurm)
    run.start_proxy({"decode-0": "decode"})
    run.wait_ready()
    body = {"model": "tiny", "prompt": "on and on", "max_tokens": 4000, "stream": True}
    with run.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
        run.processes["decode-0"].send_signal(signal.SIGTERM)
        wait_for(lambda: "RUNNING N/A; it may drain for inf s" in run.log("decode-0"), "Slurm's first word")
        state.write_text("COMPLETING 1767225600")
        run.processes["decode-0"].send_signal(signal.SIGTERM)
        assert run.processes["decode-0"].wait(60) == 0
    assert "COMPLETING 1767225600; it may drain for 3 s" in run.log("decode-0")
    assert "stopped: SIGTERM" in run.log("decode-0")
