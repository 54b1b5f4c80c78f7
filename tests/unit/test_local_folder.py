"""The agent's folder on its node: private, short, and not left behind for long, however the agent ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import SOURCE
from workers.agent import local_folder as module
from workers.agent.local_folder import PREFIX, local_folder
from workers.faults import WorkerFault
from workers.staging.mounts import Mount

HOLDER = """
import sys, time
from workers.agent.local_folder import local_folder
with local_folder() as folder:
    (folder / "socket").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, as a node's own is."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)


def hold(base: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another agent's process, with its folder."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(base)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout:
        return process, Path(process.stdout.readline().strip())


def test_it_is_private_and_its_path_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with local_folder() as folder:
        (folder / "left").touch()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder)) < 70
    assert not folder.exists()


def test_a_node_without_room_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(WorkerFault, match="TMPDIR: no folder of this node can be written"), local_folder():
        pass


def test_what_a_killed_agent_left_is_removed_by_the_next_one_and_nothing_else(base: Path) -> None:
    others = [base / "sluice-1000", base / "sluice-bench-x", base / f".{PREFIX}new"]
    for other in others:
        other.mkdir()
    (base / f"{PREFIX}link").symlink_to(others[0])
    living, theirs = hold(base)
    killed, left = hold(base)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "socket").exists()
        with local_folder() as ours:
            assert ours.exists() and not left.exists()
            assert (theirs / "socket").exists(), "its agent lives"
        assert all(other.exists() for other in others)
    finally:
        for process in (living, killed):
            process.kill()
            process.wait()


def test_where_other_nodes_write_too_nothing_is_removed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held on another node might not show here."""
    monkeypatch.setattr(module, "mount_at", lambda path: Mount(device="fs", point="/", kind="lustre"))
    left = base / f"{PREFIX}left"
    left.mkdir()
    with local_folder():
        assert left.exists()
