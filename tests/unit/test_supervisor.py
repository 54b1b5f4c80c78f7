"""The controller's job: what it does when its controller is killed, ends, or is to end. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.control.kept_process import living
from tests.live import SOURCE, end_tree, wait_for

# In place of the controller: says who it is, leaves a process behind that outlives it, and waits to be told to end.
CONTROLLER = """
import pathlib, signal, subprocess, sys, os
run = pathlib.Path(sys.argv[1])
if (run / "end_with").exists():
    sys.exit(int((run / "end_with").read_text()))
left = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with (run / "pids").open("a") as file:
    file.write(f"{os.getpid()} {left.pid}\\n")
signal.pause()
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = tmp_path / "stand_in" / "controller_here.py"
    program.parent.mkdir()
    program.write_text(CONTROLLER)
    start = (
        "import launcher.control.supervisor as s, sys; s.MODULE = 'controller_here'; sys.exit(s.supervise(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}:{program.parent}"},
        start_new_session=True,
    )
    yield process
    end_tree(process)


def lives(folder: Path) -> list[tuple[int, int]]:
    """Of controllers that have started, and of what each left."""
    file = folder / "pids"
    pairs = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(own), int(left)) for own, left in pairs]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_killed_controller_is_followed_by_another_and_what_it_had_started_stays(
    tmp_path: Path, supervisor: subprocess.Popen[bytes]
) -> None:
    wait_for(lambda: len(lives(tmp_path)) == 1, "a controller")
    ((first, left),) = lives(tmp_path)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(lives(tmp_path)) == 2, "another one")
    assert parent(left) == supervisor.pid, "Slurm counts it to the job"
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(30) == 0, "the controller was told"
    assert len(lives(tmp_path)) == 2


def test_a_controller_that_ends_by_itself_is_the_last(tmp_path: Path, supervisor: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: len(lives(tmp_path)) == 1, "a controller")
    (tmp_path / "end_with").write_text("2")
    os.kill(lives(tmp_path)[0][0], signal.SIGKILL)
    assert supervisor.wait(30) == 2


def test_a_proxy_is_known_by_its_command_line(tmp_path: Path) -> None:
    (tmp_path / "proxy.py").write_text("input()")
    spec = tmp_path / "proxy-0.json"
    assert living("proxy", spec) is None
    command = [sys.executable, "-m", "proxy", str(spec)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path, env={"PATH": os.environ["PATH"]}) as process:
        try:
            wait_for(lambda: living("proxy", spec) == process.pid, "the proxy")
            assert living("proxy", tmp_path / "proxy-1.json") is None
        finally:
            process.kill()
