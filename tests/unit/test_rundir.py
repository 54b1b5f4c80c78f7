"""rundir, keys and ownership: modes, the code snapshot, secrets that are kept, one controller at a time."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from launcher.control import ownership
from launcher.control.heir import followed, predecessor
from launcher.control.ownership import OwnedByOther, claim, forget, is_owner, living_owner
from launcher.keys import write_keys
from launcher.rundir import PACKAGES, SERVE, Desired, Owner, RunDir, code_hash, read_optional, snapshot_code
from launcher.view.run_status import LAUNCHING, STALE_S, STOPPED, RunStatus
from tests.live import wait_for
from tests.unit.planning import planned
from workers.spec import write_json


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "demo")
    run.create()
    return run


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_look_into_a_run(run: RunDir) -> None:
    write_keys(run.keys)
    run.write_desired(Desired(target=SERVE, workers=("p",), since=1.0))
    for path in [run.path, *run.path.rglob("*")]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_what_is_written_is_read_back(run: RunDir) -> None:
    desired = Desired(target=SERVE, workers=("p", "d"), since=1.0)
    run.write_desired(desired)
    assert run.read_desired() == desired
    assert run.read_jobs() == []
    assert read_optional(run.endpoint, dict) is None


def small_source(folder: Path) -> Path:
    for package in PACKAGES:
        (folder / package).mkdir(parents=True)
        (folder / package / "file.py").write_text(f"# {package}\n")
    return folder


def test_the_snapshot_is_the_code_without_what_python_left(run: RunDir, tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    before = code_hash(source)
    (source / "workers" / "__pycache__").mkdir()
    (source / "workers" / "__pycache__" / "file.pyc").write_bytes(b"x")
    assert code_hash(source) == before
    code = snapshot_code(run, source)
    assert code == before == code_hash(run.code_dir(code))
    assert not list(run.code_dir(code).rglob("*.pyc"))
    assert [path.name for path in run.code.iterdir()] == [code], "nothing half-copied is left"


def test_other_code_is_another_snapshot(run: RunDir, tmp_path: Path) -> None:
    source = small_source(tmp_path / "source")
    first = snapshot_code(run, source)
    (source / "proxy" / "file.py").write_text("# new\n")
    assert snapshot_code(run, source) != first
    assert snapshot_code(run, source) == code_hash(source), "again is no fault"


def test_keys_are_kept_and_only_the_hash_is_shared(run: RunDir) -> None:
    write_keys(run.keys)
    before = {path.name: path.read_bytes() for path in run.keys.iterdir()}
    write_keys(run.keys)
    assert {path.name: path.read_bytes() for path in run.keys.iterdir()} == before
    assert set(before) == {
        "proxy.json",
        "worker.json",
        "controller.json",
        "api_key",
        "batch_key",
        "reader_key",
        "operator_key",
        "api_keys.json",
    }
    files = {"user": "api_key", "batch": "batch_key", "reader": "reader_key", "operator": "operator_key"}
    keys = {kind: before[name].decode() for kind, name in files.items()}
    assert all(key.startswith("sk-sluice-") and len(key) > 40 for key in keys.values())
    assert [(entry["class"], entry["hash"]) for entry in msgspec.json.decode(before["api_keys.json"])] == [
        (kind, hashlib.sha256(key.encode()).hexdigest()) for kind, key in keys.items()
    ]
    assert len({msgspec.json.decode(before[f"{party}.json"])["secret"] for party in ("proxy", "worker")}) == 2


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "SETTLE_S", 0.0)
    monkeypatch.setattr(ownership, "LOOK_S", 0.01)


def test_a_run_has_one_controller(run: RunDir) -> None:
    assert living_owner(run) is None
    # It has to look like this run's controller: process ids are used again.
    other = subprocess.Popen(
        [sys.executable, "-c", "input()", "launcher.control.controller", str(run.path)], stdin=subprocess.PIPE
    )
    try:
        owner = Owner(id="a", host=socket.gethostname(), pid=other.pid, job="", started_at=time.time())
        write_json(run.owner, owner)
        assert living_owner(run) == owner
        with pytest.raises(OwnedByOther, match=str(other.pid)):
            claim(run, "")
    finally:
        other.communicate(b"\n")
    mine = claim(run, "")
    assert is_owner(run, mine) and mine.pid == os.getpid()
    forget(run, mine)
    assert not run.owner.exists()


def test_a_process_that_is_something_else_by_now_is_no_controller(run: RunDir) -> None:
    write_json(run.owner, Owner(id="a", host=socket.gethostname(), pid=os.getppid(), job="", started_at=time.time()))
    assert living_owner(run) is None


def test_on_another_host_the_status_shows_whether_it_lives(run: RunDir) -> None:
    owner = Owner(id="a", host="elsewhere", pid=1, job="7", started_at=time.time() - 100)
    write_json(run.owner, owner)
    assert living_owner(run) is None, "silent since its start"
    fresh = RunStatus(run="demo", phase=LAUNCHING, written_at=time.time(), controller="a")
    write_json(run.status, fresh)
    assert living_owner(run) == owner
    write_json(run.status, msgspec.structs.replace(fresh, phase=STOPPED))
    assert living_owner(run) is None
    write_json(run.status, msgspec.structs.replace(fresh, controller="b"))
    assert living_owner(run) is None, "somebody else's status"


def test_a_requeued_controller_does_not_wait_for_its_own_former_life(run: RunDir) -> None:
    write_json(run.owner, Owner(id="a", host="elsewhere", pid=1, job="7", started_at=time.time()))
    assert claim(run, "7").job == "7"


def test_a_controller_that_starts_anew_still_knows_whose_heir_it_was(run: RunDir) -> None:
    """The one before, killed as well, has its proxy to see off and must not become an heir itself."""
    write_json(run.owner, Owner(id="a", host="elsewhere", pid=1, job="8", started_at=time.time(), proxy="p", after="7"))
    assert claim(run, "8").after == "7" and followed(run, "7") == read_optional(run.owner, Owner)
    write_json(run.owner, Owner(id="a", host=socket.gethostname(), pid=os.getppid(), job="8", started_at=0, after="7"))
    assert claim(run, "9").after == ""


def test_a_controller_that_was_killed_just_now_is_followed_and_not_replaced(run: RunDir) -> None:
    """Its job starts it again: another job that took the run meanwhile would keep its proxy under the same name."""
    plan = planned("+cluster=onebox", "engine=sim", "run=demo")
    owner = Owner(id="a", host=socket.gethostname(), pid=os.getppid(), job="7", started_at=time.time())
    write_json(run.owner, owner)
    assert predecessor(run, plan, "8") == owner and predecessor(run, plan, "7") is None
    write_json(run.owner, msgspec.structs.replace(owner, started_at=owner.started_at - STALE_S))
    assert predecessor(run, plan, "8") is None, "nobody has heard of it for long"


def test_a_controller_waits_for_a_run_folder_that_takes_no_file(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    in_the_way = run.owner.with_name(f".{run.owner.name}.{os.getpid()}")
    in_the_way.mkdir()
    with ThreadPoolExecutor() as pool:
        mine = pool.submit(claim, run, "")
        try:
            wait_for(lambda: "trying again" in caplog.text, "a word on it")
        finally:
            in_the_way.rmdir()
        assert is_owner(run, mine.result())
