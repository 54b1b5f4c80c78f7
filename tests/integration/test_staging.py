"""Processes of one node that stage the same model: one copies, the others wait, and any of them may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import Live, sim_engine, wait_for
from tests.staging import Stager, check, command, content, environment, make_model, write_spec
from workers.staging.staging import PART
from workers.staging.staging_process import Checked, Progress, Staged

NUM_RACERS = 6
SHARD_BYTES = 16 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "m", num_shards=6, shard_bytes=SHARD_BYTES)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def stagers() -> Iterator[list[Stager]]:
    started: list[Stager] = []
    yield started
    for stager in started:
        stager.kill()


def caught_copying(run_dir: Path, model: Path, disk: Path) -> Stager:
    """It stands still in the middle of its copy."""
    stager = Stager(run_dir, model, disk)
    while not list(disk.rglob(f"*{PART}")):
        assert stager.process.poll() is None
        time.sleep(0.001)
    stager.process.send_signal(signal.SIGSTOP)
    return stager


def test_of_many_processes_one_copies(tmp_path: Path, model: Path, disk: Path, stagers: list[Stager]) -> None:
    stagers += [Stager(tmp_path / f"run{number}", model, disk) for number in range(NUM_RACERS)]
    ends = [stager.hear_end() for stager in stagers]
    (folder,) = {end.folder for end in ends if isinstance(end, Staged)}
    assert len(ends) == NUM_RACERS and content(Path(folder)) == content(model)
    assert sum(map(written_bytes, stagers)) < 7 * SHARD_BYTES, "once, by whomever"
    for stager in stagers:
        stager.release()
        assert stager.process.returncode == 0


def test_when_the_one_that_copies_is_killed_another_goes_on(
    tmp_path: Path, model: Path, disk: Path, stagers: list[Stager]
) -> None:
    stagers.append(caught_copying(tmp_path / "first", model, disk))
    stagers += [Stager(tmp_path / f"run{number}", model, disk) for number in range(2)]
    for waiting in stagers[1:]:
        told = waiting.hear()
        assert isinstance(told, Progress) and told.by_another and told.copied_bytes < told.total_bytes
    stagers[0].kill()
    ends = [stager.hear_end() for stager in stagers[1:]]
    (folder,) = {end.folder for end in ends if isinstance(end, Staged)}
    assert len(ends) == 2 and content(Path(folder)) == content(model)
    assert list(disk.rglob(f"*{PART}")) == []


def test_it_ends_with_its_agent_and_the_next_one_goes_on(
    tmp_path: Path, model: Path, disk: Path, stagers: list[Stager]
) -> None:
    """Nobody reads its words any more."""
    stagers.append(caught_copying(tmp_path / "run", model, disk))
    assert stagers[0].process.stdout is not None
    stagers[0].process.stdout.close()
    stagers[0].process.send_signal(signal.SIGCONT)
    assert stagers[0].process.wait(30) != 0
    stagers.append(Stager(tmp_path / "again", model, disk))
    end = stagers[1].hear_end()
    assert isinstance(end, Staged) and content(Path(end.folder)) == content(model)


def test_a_full_disk_is_told_before_a_byte_is_copied(tmp_path: Path, model: Path, disk: Path) -> None:
    """On a small tmpfs, in a mount namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    disk.mkdir()
    path = write_spec(tmp_path / "run", model, disk)
    mounted = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=64m none {disk} && exec "$@"', "sh"]
    for what in ("check", "copy"):
        done = subprocess.run([*mounted, *command(what, path)], capture_output=True, text=True, env=environment())
        assert done.returncode == 1 and "has room for 64.0 MiB, the model needs 96.0 MiB more" in done.stdout


# ---------------------------------------------------------------- through the agent


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Live]:
    started = Live(tmp_path / "run")
    try:
        yield started
    finally:
        started.stop()


def test_workers_of_one_node_start_on_one_copy(run: Live, tmp_path: Path, model: Path, disk: Path) -> None:
    names = ("prefill-0", "decode-0")
    run.start_proxy({name: name.rsplit("-", 1)[0] for name in names})
    for index, name in enumerate(names):
        run.start_worker(name, sim_engine(model_path=str(model)), index=index, stage_dir=str(disk))
    run.wait_ready()
    assert all("staging" in worker["stages"] for worker in run.fleet()["workers"])
    (folder,) = [path for path in disk.glob("*/*") if path.is_dir()]
    assert content(folder) == content(model)
    assert sum(path.stat().st_size for path in folder.iterdir()) > 6 * SHARD_BYTES
    lock = folder.parent / f"{folder.name}.used"
    assert held(lock), "their agents hold on to it: no other model may take its room"
    run.stop()
    assert not held(lock)


def test_a_model_that_cannot_be_staged_is_told_with_every_other_fault(run: Live, tmp_path: Path, disk: Path) -> None:
    engine = sim_engine(model_path=str(tmp_path / "gone"))
    run.start_worker("decode-0", engine, interface="ib7", stage_dir=str(disk))
    assert run.processes["decode-0"].wait(60) == 1
    told = run.log("decode-0").split("failed: ", 1)[1].splitlines()
    assert told[0].startswith("cluster.interface: ") and " has no interface ib7 " in told[0]
    assert told[1] == f"model.path: {tmp_path}/gone: No such file or directory"


def test_a_worker_that_is_stopped_while_it_stages_stops(run: Live, tmp_path: Path, model: Path, disk: Path) -> None:
    other = caught_copying(tmp_path / "other", model, disk)
    try:
        run.start_worker("decode-0", sim_engine(model_path=str(model)), stage_dir=str(disk))
        wait_for(lambda: "copied by another worker of this node" in run.log("decode-0"), "the staging")
        run.processes["decode-0"].terminate()
        assert run.processes["decode-0"].wait(30) == 0
        assert "stopped: SIGTERM" in run.log("decode-0")
    finally:
        other.kill()
    assert isinstance(check(other.spec_path), Checked)


def held(lock: Path) -> bool:
    return subprocess.run(["flock", "--nonblock", "--exclusive", str(lock), "true"]).returncode == 1


def written_bytes(stager: Stager) -> int:
    lines = Path(f"/proc/{stager.process.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])
