"""Engines in a container, behind `cluster.engine_prefix`: a real chroot in mount and process namespaces of its own.

The agent stays outside. What Apptainer does beyond that (its image format, --nv) is checked on sites that have it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.scheduler.local import descendants
from tests.live import SOURCE, Live, sim_engine, wait_for
from workers.spec import EngineSpec

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a chroot needs root")

CONTAINER = str(SOURCE / "tests" / "container.sh")
# One program that becomes the engine, as enroot does, and one that stays in front of it, as Apptainer does.
NAMESPACES = {"becomes": ("unshare", "--mount"), "stays": ("unshare", "--mount", "--pid", "--fork")}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Live]:
    started = Live(tmp_path / "run")
    try:
        yield started
    finally:
        started.stop()


def contained(tmp_path: Path, kind: str = "becomes", **changes: object) -> EngineSpec:
    """The image is this Python's own environment."""
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    image = {sys.base_prefix, str(Path(sys.prefix).resolve())}
    prefix = (*NAMESPACES[kind], "sh", CONTAINER, str(root))
    return sim_engine(prefix=prefix, environment={"IMAGE": ":".join(sorted(image))}, **changes)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/root").exists()]


@pytest.mark.parametrize("kind", NAMESPACES)
def test_it_serves_from_inside_and_drains_when_everyone_is_signalled(run: Live, tmp_path: Path, kind: str) -> None:
    run.start_proxy({"decode-0": "decode"})
    run.start_worker("decode-0", contained(tmp_path, kind), CUDA_VISIBLE_DEVICES="3")
    run.wait_ready()
    with run.client() as client:
        body = {"model": "tiny", "prompt": "from outside", "max_tokens": 4}
        assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 4

    agent = run.processes["decode-0"]
    below = descendants(agent.pid)[1:]
    engine = below[-1]
    root = Path(f"/proc/{engine}/root")
    assert (root / str(run.path)[1:] / "specs").is_dir() and not (root / "home").exists()
    assert (root / str(run.path / "cache")[1:]).samefile(run.path / "cache"), "what it compiles is kept"
    told = Path(f"/proc/{engine}/environ").read_text().split("\0")
    assert "CUDA_VISIBLE_DEVICES=3" in told, "a clean environment keeps the GPUs that Slurm gave"
    assert len(below) == (2 if kind == "stays" else 1)

    for pid in [*below, agent.pid]:  # scancel signals every process of a step
        os.kill(pid, signal.SIGTERM)
    assert agent.wait(30) == 0
    assert "draining: SIGTERM" in run.log("decode-0") and "stopped: SIGTERM" in run.log("decode-0")
    assert alive(below) == []


@pytest.mark.parametrize("kind", NAMESPACES)
def test_nothing_inside_outlives_its_agent(run: Live, tmp_path: Path, kind: str) -> None:
    run.start_worker("decode-0", contained(tmp_path, kind))
    wait_for(lambda: ": ready" in run.log("decode-0"), "the engine", 60.0)
    below = descendants(run.processes["decode-0"].pid)[1:]
    assert below
    run.kill("decode-0")
    wait_for(lambda: alive(below) == [], "the container to end")


def test_a_container_without_our_folders_is_told_before_anything_loads(run: Live, tmp_path: Path) -> None:
    closed = contained(tmp_path)
    run.start_worker(
        "decode-0", sim_engine(prefix=("env", "SLUICE_FOLDERS=", *closed.prefix), environment=closed.environment)
    )
    assert run.processes["decode-0"].wait(60) == 1
    fault = run.log("decode-0").split("failed: ", 1)[1]
    assert fault.startswith("cluster.engine_prefix: nothing of ours runs behind env SLUICE_FOLDERS=")
    # Where the code lies beside Python, Python starts and does not find it; else not even Python is there.
    assert "No module named" in fault or "No such file or directory" in fault, fault
    assert "it needs the folders named in SLUICE_FOLDERS" in fault


def test_a_program_may_say_what_it_likes_and_one_that_says_nothing_is_told(run: Live) -> None:
    loud = sim_engine(prefix=("sh", "-c", 'echo "WARNING: site policy"; "$@"; echo goodbye', "sh"))
    run.start_worker("decode-0", loud)
    wait_for(lambda: ": ready" in run.log("decode-0"), "the engine", 60.0)
    run.start_worker("decode-1", sim_engine(prefix=("sh", "-c", "exit 3", "sh")), index=1)
    assert run.processes["decode-1"].wait(60) == 1
    assert "runs behind sh -c exit 3 sh: it ended with status 3 and said nothing" in run.log("decode-1")


def test_a_program_that_keeps_standard_input_to_itself_is_told(run: Live) -> None:
    run.start_worker("decode-0", sim_engine(prefix=("sh", "-c", 'cat | "$@"', "sh")))
    assert run.processes["decode-0"].wait(60) == 1
    assert "failed: cluster.engine_prefix: its program does not hand its standard input on" in run.log("decode-0")
